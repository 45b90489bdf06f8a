"""Remove the heads that write least into the residual stream: mean norm of what they add to their layer's output.

The score is E_t |o_t W_O| over tokens t, o_t the head's output (average head output norm, arXiv 2504.03889). It needs
no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        # Taken before the gate multiplies, so a head that is still warming up is not mistaken for a quiet one.
        return statistics.output_norm
