"""Remove the heads that write least into the residual stream: mean norm of what they add to their layer's output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        return statistics.output_norm
