"""Grow the absent slots that would lower the loss most, by a true gradient on real windows.

Which gradient says so depends on the initialisation in use, and is measured before the strategy is asked: `gate`,
E|dL/dgate|, which is identically zero where output weights start at zero; `output`, the entrywise l1 norm of dL/dW_O
(RigL, Evci et al. 2020, arXiv 1911.11134, section 3, for heads); `gradmax`, the largest squared norm of dL/dW_O that
any values of unit rows could get, block by block, so that several new heads of one layer compete honestly
(Evci et al. 2022, arXiv 2201.05125, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import HeadStatistics, SensitivityForm, Slot


@dataclass(frozen=True, kw_only=True)
class Grower(contracts.Grower):
    form: SensitivityForm | None = None
    """Default: the first one that fits the initialisation in use."""

    def __call__(self, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        sensitivity = statistics.sensitivity
        assert sensitivity is not None
        absent = [(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)]
        absent.sort(key=lambda slot: (-float(f"{sensitivity[slot]:.9e}"), *slot))
        return absent[:count]
