"""Fill the layers with the smallest present fraction first, until layers differ by one head at most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import HeadStatistics, Slot


@dataclass(frozen=True, kw_only=True)
class Grower(contracts.Grower):
    def __call__(self, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        # A copy to count in: the statistics describe the model as it is, and a strategy changes nothing.
        present = statistics.present.copy()
        chosen: list[Slot] = []
        while len(chosen) < count:
            # The first of equally full layers. A full layer has fraction 1, so it is never taken while a
            # slot is absent.
            layer = int(np.argmin(present.mean(1)))
            head = int(np.flatnonzero(~present[layer])[0])
            present[layer, head] = True
            chosen.append((layer, head))
        return chosen
