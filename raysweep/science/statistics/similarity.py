"""How alike the states or updates of two steps are, one sequence at a time; how many dimensions they fill."""

from __future__ import annotations

import numpy as np
import torch

from raysweep.contracts import Array
from raysweep.science.statistics.resampling import Ints

FEWEST_TOKENS = 4
"""Of a sequence: the unbiased estimate of `alignments` divides by tokens - 3. Shorter sequences are left out."""


def update_cosines(states: torch.Tensor) -> Array:
    """Return the mean over tokens of the cosine of each two updates, (steps, steps).

    Args:
        states: (steps + 1, tokens, width).
    """
    updates = torch.nn.functional.normalize(states.diff(dim=0), dim=-1)
    return (torch.einsum("atw,btw->ab", updates, updates) / states.shape[1]).numpy()


def alignments(states: torch.Tensor) -> Array:
    """Return the linear CKA of each two states (Kornblith et al. 2019), (steps + 1, steps + 1).

    With the unbiased estimate of Song et al. (2012), section 3, since a sequence has fewer tokens than dimensions.
    """
    grams = states @ states.transpose(1, 2)
    grams.diagonal(dim1=1, dim2=2).zero_()
    count = grams.shape[-1]
    rows = grams.sum(-1)
    traces = torch.einsum("aij,bij->ab", grams, grams)
    sums = rows.sum(-1)
    independence = (
        traces
        + sums[:, None] * sums[None, :] / ((count - 1) * (count - 2))
        - 2 / (count - 2) * (rows @ rows.T)
    ) / (count * (count - 3))  # fmt: skip
    own = independence.diagonal()
    return (independence / (own[:, None] * own[None, :]).sqrt()).numpy()


def breadths(states: torch.Tensor) -> Array:
    """Return how many dimensions the tokens' states fill at each step, (steps + 1,).

    The participation ratio (sum lambda)^2 / sum lambda^2 of the eigenvalues of their covariance, after each state is
    divided by its root mean square: growth of the states alone changes nothing. It is at most tokens - 1.
    """
    scaled = states / states.square().mean(-1, keepdim=True).sqrt()
    centred = scaled - scaled.mean(1, keepdim=True)
    grams = centred @ centred.transpose(1, 2)
    return (grams.diagonal(dim1=1, dim2=2).sum(-1).square() / grams.square().sum((1, 2))).numpy()


def orders(sequences: int, steps: int, draws: int, generator: np.random.Generator) -> Ints:
    """Return random orders of the steps, another one for each sequence, (draws, sequences, steps)."""
    return generator.random((draws, sequences, steps)).argsort(-1)
