"""Remove the heads whose removal costs least: the loss without each head, measured by one forward pass a head.

For head h it is the loss with its gate at 0 minus the loss with it at 1, which the other scores estimate. It holds for
one head removed alone, since heads make up for each other; with `rounds` removal is greedy and scores the rest anew.
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
        # The probe measures contributions because `requires` names them.
        assert statistics.contribution is not None
        return statistics.contribution
