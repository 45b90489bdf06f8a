"""Remove heads at random: the control that every other strategy must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        # One draw for each slot, absent ones too: a head's draw does not depend on which others are present.
        return generator.random(statistics.present.shape)
