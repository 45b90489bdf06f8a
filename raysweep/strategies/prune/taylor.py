"""Remove the heads whose gates the loss feels least (Michel et al. 2019, section 4.1: E|dL/dgate|)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        return statistics.taylor
