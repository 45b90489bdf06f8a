"""Compare the attention of heads: their Jensen-Shannon divergence, a block of queries at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from raysweep.networks.plasticity.attention_statistics import score_blocks


@dataclass(frozen=True, kw_only=True)
class Attended:
    """The arguments of one layer's attention; see `attention_statistics`."""

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    causal: bool


@torch.no_grad()
def attention_divergence(one: Attended, other: Attended) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each query's divergence in nats, in [0, ln 2], and how many keys are visible in both.

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2 (Lin 1991). It is exactly 0 for equal attention, and
    ln 2 where no key has weight in both. For a query that sees no key it is 0.

    Args:
        one, other: of the same batch, heads and tokens.

    Returns:
        (batch, heads, queries) each.
    """
    parts = [
        _of_block(*_weights(*ours), *_weights(*theirs))
        for ours, theirs in zip(_blocks(one), _blocks(other), strict=True)
    ]
    divergences, visible = zip(*parts, strict=True)
    return torch.cat(divergences, dim=2), torch.cat(visible, dim=2)


def _blocks(of: Attended) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return score_blocks(of.query, of.key, of.mask, scaling=of.scaling, causal=of.causal)


def _weights(scores: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention weights in fp64, 0 at hidden keys, and which keys are visible."""
    # In float64: for nearly equal heads the divergence is a small difference of logarithms.
    visible = (~hidden).expand_as(scores)
    weights = scores.double().masked_fill(~visible, -torch.inf).softmax(-1)
    # Without any visible key the softmax is NaN; `where` makes it 0.
    return torch.where(visible, weights, 0.0), visible


def _of_block(
    one: torch.Tensor, seen: torch.Tensor, other: torch.Tensor, seen_too: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    # `score_blocks` leaves keys after a causal block out where there is no mask, so the two layers of a network may
    # have different numbers of keys here. Padding adds keys of weight 0.
    keys = max(one.shape[-1], other.shape[-1])
    one, seen, other, seen_too = (functional.pad(x, (0, keys - x.shape[-1])) for x in (one, seen, other, seen_too))
    mean = (one + other) / 2
    divergence = (_relative(one, mean) + _relative(other, mean)).sum(-1) / 2
    # Rounding must not leave the interval.
    return divergence.clamp(0.0, math.log(2)), (seen & seen_too).sum(-1)


def _relative(weights: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return p log(p / m), 0 where p is 0."""
    # Where p > 0, m is at least p / 2: the quotient is finite. Elsewhere it may be 0 / 0 and is not used.
    return torch.where(weights > 0, weights * (weights / mean).log(), 0.0)
