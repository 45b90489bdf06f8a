"""Remove the heads with the smallest weights: Frobenius norm of all four matrices, of W_V W_O, or of W_Q W_K^T.

`raw` changes if W_V is multiplied by a matrix and W_O by its inverse, which is the same function; `ov` and `qk` do not,
and count the gain of the norm in front of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    form: Literal["raw", "ov", "qk"] = "raw"
    """Which norm: of all four matrices, of the output circuit W_V W_O, or of the attention pattern's W_Q W_K^T."""

    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        forms = {"raw": statistics.magnitude, "ov": statistics.magnitude_ov, "qk": statistics.magnitude_qk}
        return forms[self.form]
