"""Remove the heads whose gates the loss feels least (Michel et al. 2019, section 4.1: E|dL/dgate|).

"Are Sixteen Heads Really Better than One?", arXiv 1905.10650. To first order, |dL/dgate| is by how much closing the
gate changes the loss of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        # Absolute window by window: in the mean over windows, gradients of opposite signs would cancel.
        return statistics.taylor
