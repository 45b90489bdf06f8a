"""Grow absent slots at random: the control that every other strategy must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import HeadStatistics, Slot


@dataclass(frozen=True, kw_only=True)
class Grower(contracts.Grower):
    def __call__(self, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        absent = np.argwhere(~statistics.present)
        # Drawn at once and without replacement, so no slot is grown twice.
        chosen = generator.choice(len(absent), size=count, replace=False)
        return [(int(layer), int(head)) for layer, head in absent[chosen]]
