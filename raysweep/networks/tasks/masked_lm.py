"""Predict hidden tokens of a window from all others; 15% of the tokens that are not special are hidden.

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
        """Return the token that would replace each one, for all positions, hidden or not."""
        assert self.facts.mask_token is not None and self.facts.vocab_size is not None
        if self.facts.masking == "mask":
            return np.full_like(tokens, self.facts.mask_token)
        drawn = (other * self.facts.vocab_size).astype(np.int64)
        # One number in [0, 1) decides: below .8 the mask token, the next .1 a random token, the rest the token
        # itself.
        return np.where(fate < MASKED, self.facts.mask_token, np.where(fate < MASKED + RANDOM, drawn, tokens))


def _drawn(seeds: Sequence[int], length: int) -> Array:
    """Return three numbers in [0, 1) for each position, (3, windows, length), drawn from each window's own seed."""
    # A generator for each window: what is hidden in it does not depend on the batch that it is in, nor on the
    # rank.
    drawn = [np.random.default_rng(seed).random((3, length)) for seed in seeds]
    return np.array(drawn).reshape(len(seeds), 3, length).swapaxes(0, 1)


def _chosen(maskable: Mask, order: Array) -> Mask:
    """Choose the first 15% of each window's maskable positions in a random order; at least one if there is any."""
    # A fixed share and not a coin for each: every window with a maskable token then has a loss.
    counts = np.maximum(np.rint(CHOSEN * maskable.sum(1)), maskable.any(1))
    # Draws lie below 1, so 2.0 sorts special tokens last. The argsort of an argsort is each position's rank.
    ranks = np.where(maskable, order, 2.0).argsort(1).argsort(1)
    return np.less(ranks, counts[:, None])
