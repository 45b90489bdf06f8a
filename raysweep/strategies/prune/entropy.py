"""Remove the heads with the highest, or the lowest, attention entropy.

The score is the mean over queries of H / log n, H the entropy of a query's attention weights and n its visible keys.
Which direction is right depends on the model: in one the highest are dispensable, in another they are the first layer.
So the direction has no default. Low entropy mixes specialised heads with heads that only attend to the first token (an
attention sink); `sink_free` leaves that token out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    direction: Literal["high", "low"] = field(metadata={"help": "say which heads go first, 'high' or 'low' entropy"})
    sink_free: bool = False
    """Take the entropy over all keys but the first token."""

    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        entropy = statistics.sink_free_entropy if self.sink_free else statistics.entropy
        # The lowest score is removed first, so heads of high entropy need the sign turned.
        return -entropy if self.direction == "high" else entropy
