"""Grow the absent slots that would lower the loss most, by a true gradient on real windows.

Which gradient predicts that depends on the initialisation in use; the probe measures it before the strategy runs:

- `gate`: E|dL/dgate|, identically zero where output weights start at zero;
- `output`: the entrywise l1 norm of dL/dW_O (RigL, Evci et al. 2020, arXiv 1911.11134, section 3, for heads);
- `gradmax`: the largest squared norm of dL/dW_O that value weights with rows of norm 1 can give, one block of
  directions for each new head of a layer, so that two heads do not count the same direction (Evci et al. 2022,
  arXiv 2201.05125, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import HeadStatistics, SensitivityForm, Slot
from raysweep.networks.plasticity.ranking import rounded


@dataclass(frozen=True, kw_only=True)
class Grower(contracts.Grower):
    form: SensitivityForm | None = None
    """Which gradient. Default: the first one that fits the initialisation in use."""

    def __call__(self, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        sensitivity = statistics.sensitivity
        assert sensitivity is not None
        absent = [(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)]
        # Ranks add their sums in an order that depends on their number, so the last digits differ. Rounded
        # scores that are equal are ordered by place, the same for any number of ranks.
        absent.sort(key=lambda slot: (-rounded(float(sensitivity[slot])), *slot))
        return absent[:count]
