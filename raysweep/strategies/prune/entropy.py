"""Remove the heads with the highest, or the lowest, attention entropy.

Which direction is right is a property of the model: on one the highest are dispensable, on another they are the
first layer. So the direction has no default. Low entropy mixes heads that are specialised with heads that rest on the
first token; `sink_free` leaves that token out.
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

    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        entropy = statistics.sink_free_entropy if self.sink_free else statistics.entropy
        return -entropy if self.direction == "high" else entropy
