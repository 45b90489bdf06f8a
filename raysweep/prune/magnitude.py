"""Remove the heads with the smallest weights: Frobenius norm of the head's own query, key, value and output slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner:
    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        return statistics.magnitude
