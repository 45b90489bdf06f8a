"""Predict each token of a window from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from raysweep.contracts import Batch, Examples
from raysweep.plasticity.objective import NO_LABEL


@dataclass(frozen=True, kw_only=True)
class Task:
    model_class: ClassVar[str] = "AutoModelForCausalLM"
    causal: ClassVar[bool] = True
    even: ClassVar[bool] = True

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        tokens = torch.from_numpy(examples.astype(np.int64))
        # The last token has nothing to predict.
        return Batch(inputs=tokens, labels=functional.pad(tokens[:, 1:], (0, 1), value=NO_LABEL))
