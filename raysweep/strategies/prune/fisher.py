"""Remove the heads with the smallest Fisher information of their gates, E (dL/dgate)^2 over windows.

Half of it is what a removal costs where the loss is stationary in the gate (Molchanov et al. 2019, arXiv 1906.10771,
section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        # Squared window by window: the square of a mean over windows would let gradients of opposite signs cancel.
        return statistics.fisher
