"""Make scores comparable: ranks, norms per layer, and the agreement of two scores."""

from __future__ import annotations

import numpy as np

from raysweep.contracts import Array, Mask

DIGITS = 9
"""Digits after the first to which scores are compared: the sum order of a distributed probe must not break ties."""


def rounded(score: float) -> float:
    """Return a score rounded to nine digits after its first."""
    return float(f"{score:.{DIGITS}e}")


def average_ranks(scores: Array) -> Array:
    """Return the ranks of a vector of scores, from 0; equal scores share the mean of their ranks."""
    # A group of `count` equal scores that ends at the running total c holds the ranks c - count to c - 1; their
    # mean is c - (count + 1) / 2.
    _, which, counts = np.unique([rounded(score) for score in scores], return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]


def layer_normalised(scores: Array, present: Mask) -> Array:
    """Divide each layer by the l2 norm of its present heads' scores (Michel et al. 2019, section 4.1).

    A layer whose scores are all zero stays so.
    """
    norms = np.linalg.norm(np.where(present, scores, 0.0), axis=1, keepdims=True)
    return scores / np.where(norms > 0, norms, 1.0)


def agreement(scores: Array, others: Array, present: Mask) -> dict[str, float | None]:
    """Return Spearman's rank correlation of two scores over present heads, each [layers][heads].

    `global` ranks all heads together. `layer_centred` first subtracts the mean rank of each layer: what is left is
    agreement within layers, where a difference between layers cannot pass for one between heads. None where one of the
    scores is constant, or no head is present.
    """
    if not present.any():
        return {"global": None, "layer_centred": None}
    ranks = [average_ranks(array[present]) for array in (scores, others)]
    layers = np.argwhere(present)[:, 0]
    return {
        "global": _correlation(*ranks),
        "layer_centred": _correlation(*(_centred(row, layers) for row in ranks)),
    }


def _centred(ranks: Array, layers: np.ndarray) -> Array:
    means = np.bincount(layers, ranks) / np.maximum(np.bincount(layers), 1)
    return ranks - means[layers]


def _correlation(first: Array, second: Array) -> float | None:
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first @ first) * (second @ second))
    # Rounding leaves a constant score with a tiny spread; below this bound there is nothing to correlate.
    return float(np.clip(first @ second / scale, -1.0, 1.0)) if scale > 1e-12 else None
