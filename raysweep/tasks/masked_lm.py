"""Predict tokens of a window that are hidden, from all others: 15% of them, as BERT does.

Of the chosen ones 80% are replaced by the mask token, 10% by a random token, and 10% are left as they are
(BERT, Devlin et al. 2019, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from raysweep.contracts import Batch, Examples, Facts
from raysweep.plasticity.objective import NO_LABEL

CHOSEN, MASKED, RANDOM = 0.15, 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class Task:
    reads: ClassVar[Literal["windows"]] = "windows"
    needs: ClassVar[tuple[str, ...]] = ("mask_token", "vocab_size")
    new_head: ClassVar[bool] = False
    model_class: ClassVar[str] = "AutoModelForMaskedLM"
    causal: ClassVar[bool] = False
    even: ClassVar[bool] = True
    predicted: ClassVar[float] = CHOSEN
    facts: Facts = Facts()

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        assert self.facts.mask_token is not None and self.facts.vocab_size is not None
        inputs = examples.astype(np.int64)
        labels = np.full_like(inputs, NO_LABEL)
        for row, seed in enumerate(seeds):
            generator = np.random.default_rng(seed)
            chosen = _positions(inputs.shape[1], generator)
            labels[row, chosen] = inputs[row, chosen]
            inputs[row, chosen] = _hidden(inputs[row, chosen], self.facts.mask_token, self.facts.vocab_size, generator)
        at = torch.from_numpy(np.flatnonzero(labels != NO_LABEL))
        return Batch(inputs=torch.from_numpy(inputs), labels=torch.from_numpy(labels), labelled=at)


def _positions(length: int, generator: np.random.Generator) -> Examples:
    # The same number in every window, and not each position by chance: every window then has a loss.
    return generator.choice(length, size=max(1, round(CHOSEN * length)), replace=False)


def _hidden(tokens: Examples, mask: int, vocab_size: int, generator: np.random.Generator) -> Examples:
    fate = generator.random(len(tokens))
    drawn = generator.integers(vocab_size, size=len(tokens))
    return np.where(fate < MASKED, mask, np.where(fate < MASKED + RANDOM, drawn, tokens))
