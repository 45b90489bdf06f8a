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

from raysweep import contracts
from raysweep.contracts import Array, Batch, Examples, Facts, Mask
from raysweep.networks.plasticity.objective import NO_LABEL

CHOSEN, MASKED, RANDOM = 0.15, 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class Task(contracts.Task):
    reads: ClassVar[Literal["windows"]] = "windows"
    needs: ClassVar[tuple[str, ...]] = ("mask_token", "vocab_size")
    new_head: ClassVar[bool] = False
    model_class: ClassVar[str] = "AutoModelForMaskedLM"
    causal: ClassVar[bool] = False
    even: ClassVar[bool] = False
    predicted: ClassVar[float] = CHOSEN
    facts: Facts = Facts()

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        tokens = examples.astype(np.int64)
        order, fate, other = _drawn(seeds, tokens.shape[1])
        chosen = _chosen(~np.isin(tokens, self.facts.special_tokens), order)
        return Batch(
            inputs=torch.from_numpy(np.where(chosen, self._hidden(tokens, fate, other), tokens)),
            labels=torch.from_numpy(np.where(chosen, tokens, NO_LABEL)),
            labelled=torch.from_numpy(np.flatnonzero(chosen)),
        )

    def _hidden(self, tokens: Examples, fate: Array, other: Array) -> Examples:
        """Return what stands where a token is hidden; for each position, hidden or not."""
        assert self.facts.mask_token is not None and self.facts.vocab_size is not None
        if self.facts.masking == "mask":
            return np.full_like(tokens, self.facts.mask_token)
        drawn = (other * self.facts.vocab_size).astype(np.int64)
        return np.where(fate < MASKED, self.facts.mask_token, np.where(fate < MASKED + RANDOM, drawn, tokens))


def _drawn(seeds: Sequence[int], length: int) -> Array:
    """Return three numbers between 0 and 1 for each position, (3, windows, length); each window's are its seed's."""
    drawn = [np.random.default_rng(seed).random((3, length)) for seed in seeds]
    return np.array(drawn).reshape(len(seeds), 3, length).swapaxes(0, 1)


def _chosen(maskable: Mask, order: Array) -> Mask:
    """Choose the maskable positions of each window that come first; at least one where there is one."""
    # A share of them, and not each by chance: every window that has one then has a loss.
    counts = np.maximum(np.rint(CHOSEN * maskable.sum(1)), maskable.any(1))
    ranks = np.where(maskable, order, 2.0).argsort(1).argsort(1)
    return np.less(ranks, counts[:, None])
