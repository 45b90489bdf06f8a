"""Predict tokens of a window that are hidden, from all others: 15% of those that are not special.

Under `bert` masking 80% of the chosen ones are replaced by the mask token, 10% by a random token, and 10% are left as
they are (BERT, Devlin et al. 2019, section 3.1); under `mask` all are replaced by the mask token (the published PNN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from raysweep.contracts import Batch, Examples, Facts, Mask
from raysweep.plasticity.objective import NO_LABEL

CHOSEN, MASKED, RANDOM = 0.15, 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class Task:
    reads: ClassVar[Literal["windows"]] = "windows"
    needs: ClassVar[tuple[str, ...]] = ("mask_token", "vocab_size")
    new_head: ClassVar[bool] = False
    model_class: ClassVar[str] = "AutoModelForMaskedLM"
    causal: ClassVar[bool] = False
    even: ClassVar[bool] = False
    predicted: ClassVar[float] = CHOSEN
    facts: Facts = Facts()

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        assert self.facts.mask_token is not None and self.facts.vocab_size is not None
        inputs = examples.astype(np.int64)
        labels = np.full_like(inputs, NO_LABEL)
        maskable = ~np.isin(inputs, self.facts.special_tokens)
        for row, seed in enumerate(seeds):
            generator = np.random.default_rng(seed)
            chosen = _positions(maskable[row], generator)
            labels[row, chosen] = inputs[row, chosen]
            inputs[row, chosen] = self._hidden(inputs[row, chosen], generator)
        at = torch.from_numpy(np.flatnonzero(labels != NO_LABEL))
        return Batch(inputs=torch.from_numpy(inputs), labels=torch.from_numpy(labels), labelled=at)

    def _hidden(self, tokens: Examples, generator: np.random.Generator) -> Examples:
        assert self.facts.mask_token is not None and self.facts.vocab_size is not None
        if self.facts.masking == "mask":
            return np.full_like(tokens, self.facts.mask_token)
        fate = generator.random(len(tokens))
        drawn = generator.integers(self.facts.vocab_size, size=len(tokens))
        return np.where(fate < MASKED, self.facts.mask_token, np.where(fate < MASKED + RANDOM, drawn, tokens))


def _positions(maskable: Mask, generator: np.random.Generator) -> Examples:
    """Choose among the maskable positions of a window; none where there is none."""
    # A share of them, and not each by chance: every window that has one then has a loss.
    open_to_it = np.flatnonzero(maskable)
    count = min(len(open_to_it), max(1, round(CHOSEN * len(open_to_it))))
    return generator.choice(open_to_it, size=count, replace=False)
