"""Remove the heads with the smallest weights: Frobenius norm of all four matrices, of W_V W_O, or of W_Q W_K^T."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    form: Literal["raw", "ov", "qk"] = "raw"

    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        forms = {"raw": statistics.magnitude, "ov": statistics.magnitude_ov, "qk": statistics.magnitude_qk}
        return forms[self.form]
