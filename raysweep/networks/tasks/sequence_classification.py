"""Predict the class of a sentence, or of a pair of sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from raysweep import contracts
from raysweep.contracts import Batch, Examples, Facts


@dataclass(frozen=True, kw_only=True)
class Task(contracts.Task):
    reads: ClassVar[Literal["sentences"]] = "sentences"
    needs: ClassVar[tuple[str, ...]] = ("num_classes", "pad_token", "vocab_size")
    new_head: ClassVar[bool] = True
    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    causal: ClassVar[bool] = False
    even: ClassVar[bool] = True
    predicted: ClassVar[float] = 1.0
    facts: Facts = Facts()

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        rows = torch.from_numpy(examples.astype(np.int64))
        # A row is: label, number of tokens, number of tokens before the second sentence of a pair, tokens and
        # padding. Slices of one column, (batch, 1), broadcast against positions, (tokens,).
        labels, lengths, first, tokens = rows[:, 0], rows[:, 1:2], rows[:, 2:3], rows[:, 3:]
        at = torch.arange(tokens.shape[1])
        return Batch(
            inputs=tokens,
            labels=labels,
            attention_mask=(at < lengths).long(),
            token_types=((at >= first) & (at < lengths)).long() if self.facts.pairs else None,
        )
