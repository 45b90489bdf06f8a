"""Predict each token of a window from the tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional

from raysweep import contracts
from raysweep.contracts import Batch, Examples, Facts
from raysweep.networks.plasticity.objective import NO_LABEL


@dataclass(frozen=True, kw_only=True)
class Task(contracts.Task):
    reads: ClassVar[Literal["windows"]] = "windows"
    needs: ClassVar[tuple[str, ...]] = ()
    new_head: ClassVar[bool] = False
    model_class: ClassVar[str] = "AutoModelForCausalLM"
    causal: ClassVar[bool] = True
    even: ClassVar[bool] = True
    predicted: ClassVar[float] = 1.0
    facts: Facts = Facts()

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        tokens = torch.from_numpy(examples.astype(np.int64))
        # The label of a position is the next token. The last position has none.
        return Batch(inputs=tokens, labels=functional.pad(tokens[:, 1:], (0, 1), value=NO_LABEL))
