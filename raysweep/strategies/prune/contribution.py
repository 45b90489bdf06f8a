"""Remove the heads whose removal costs least: the loss without each head, measured by one forward pass a head.

The truth that the other scores estimate, one head at a time; with `rounds`, greedy removal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    requires = ("contribution",)

    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        assert statistics.contribution is not None
        return statistics.contribution
