"""Grow the absent slots that would lower the loss most, by a true gradient on real windows.

The probe measures the gradient that is alive under the initialisation in use: of the output weights where they start
at zero, of the gate otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep.contracts import HeadStatistics, Slot


@dataclass(frozen=True, kw_only=True)
class Grower:
    def __call__(self, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        sensitivity = statistics.sensitivity
        assert sensitivity is not None
        absent = [(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)]
        absent.sort(key=lambda slot: (-float(f"{sensitivity[slot]:.9e}"), *slot))
        return absent[:count]
