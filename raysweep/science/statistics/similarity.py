"""Compare the states or the updates of the steps of one sequence, and count the dimensions that states fill."""

from __future__ import annotations

import numpy as np
import torch

from raysweep.contracts import Array
from raysweep.science.statistics.resampling import Ints

FEWEST_TOKENS = 4
"""Of a sequence: the unbiased estimate of `alignments` divides by tokens - 3. Shorter sequences are left out."""


def update_cosines(states: torch.Tensor) -> Array:
    """Return the mean over tokens of the cosine between the updates of each two steps, (steps, steps).

    Args:
        states: (steps + 1, tokens, width).
    """
    updates = torch.nn.functional.normalize(states.diff(dim=0), dim=-1)
    return (torch.einsum("atw,btw->ab", updates, updates) / states.shape[1]).numpy()


def alignments(states: torch.Tensor) -> Array:
    """Return the linear CKA between the states of each two steps (Kornblith et al. 2019), (steps + 1, steps + 1).

    The Hilbert-Schmidt independence criterion is estimated without bias (Song et al. 2012, section 3): a sequence has
    fewer tokens than dimensions, where the usual estimate is near 1 even for unrelated states.

    Args:
        states: (steps + 1, tokens, width); at least `FEWEST_TOKENS` tokens.
    """
    # The unbiased estimate leaves each token's product with itself out.
    grams = states @ states.transpose(1, 2)
    grams.diagonal(dim1=1, dim2=2).zero_()
    count = grams.shape[-1]
    rows = grams.sum(-1)
    traces = torch.einsum("aij,bij->ab", grams, grams)
    sums = rows.sum(-1)
    # Products of zero-diagonal Gram matrices: tr(KL) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2 (1'KL1) / (n-2), over n (n-3).
    independence = (
        traces
        + sums[:, None] * sums[None, :] / ((count - 1) * (count - 2))
        - 2 / (count - 2) * (rows @ rows.T)
    ) / (count * (count - 3))  # fmt: skip
    own = independence.diagonal()
    return (independence / (own[:, None] * own[None, :]).sqrt()).numpy()


def breadths(states: torch.Tensor) -> Array:
    """Return how many dimensions the states of the tokens fill at each step, (steps + 1,).

    The participation ratio (sum lambda)^2 / sum lambda^2 of the eigenvalues of their covariance. It is at most
    tokens - 1.

    Args:
        states: (steps + 1, tokens, width).
    """
    # Each state is divided by its root mean square: states grow from step to step in any residual network.
    scaled = states / states.square().mean(-1, keepdim=True).sqrt()
    centred = scaled - scaled.mean(1, keepdim=True)
    grams = centred @ centred.transpose(1, 2)
    # A Gram matrix has the eigenvalues of the covariance, but for a factor that cancels: their sum is its trace, the
    # sum of their squares that of its squared entries. So none is computed.
    return (grams.diagonal(dim1=1, dim2=2).sum(-1).square() / grams.square().sum((1, 2))).numpy()


def orders(sequences: int, steps: int, draws: int, generator: np.random.Generator) -> Ints:
    """Return random orders of the steps, another one for each sequence, (draws, sequences, steps)."""
    return generator.random((draws, sequences, steps)).argsort(-1)
