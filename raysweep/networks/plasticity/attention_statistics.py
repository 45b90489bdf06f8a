"""Measure where heads attend: entropies and sink mass, computed for a block of queries at a time.

An attention function is registered with transformers that returns what sdpa returns and also passes the queries and
keys of a layer to its watcher. Which keys are visible follows from the function's arguments: the mask, or causality
where there is none. So no family needs code of its own, and never more than one block's attention maps are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BLOCK = 64
FARTHEST = 1000.0
"""Score differences are clamped here: e^-1000 is 0 in any precision, while infinity times 0 would be NaN."""


@dataclass(frozen=True, kw_only=True)
class AttentionStatistics:
    """Statistics of every query of one layer, (batch, heads, queries); zeros for queries that see too few keys."""

    entropy: torch.Tensor
    """H / log(visible keys) in [0, 1], for queries with two visible keys or more."""
    sink_mass: torch.Tensor
    """Attention weight on the first token."""
    sink_free_entropy: torch.Tensor
    """The same entropy of the weights on all other keys, A_tj / (1 - A_t0), for queries with two other visible keys or
    more. A softmax over the other keys' scores, so it has its limit where the sink takes all."""
    visible: torch.Tensor
    """Number of keys that the query may see."""
    others: torch.Tensor
    """Number of them without the first token."""


@torch.no_grad()
def attention_statistics(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    causal: bool,
    first: torch.Tensor,
) -> AttentionStatistics:
    """Measure the attention of each query (heads.md 2.1), in fp32 or better.

    Args:
        query: (batch, heads, queries, head_dim).
        key: (batch, key/value heads, keys, head_dim); consecutive query heads share one.
        mask: (batch, 1 or heads, queries, keys), true where visible, or to be added to the scores; None: see `causal`.
        scaling: of the scores.
        causal: without a mask, hide later keys.
        first: (batch,), the position of the first token; 0 unless padding stands there.
    """
    blocks = score_blocks(query, key, mask, scaling=scaling, causal=causal)
    columns = zip(*(_of_block(scores, hidden, first) for scores, hidden in blocks), strict=True)
    entropy, sink, free, visible, others = (torch.cat(column, dim=2) for column in columns)
    return AttentionStatistics(
        entropy=entropy, sink_mass=sink, sink_free_entropy=free, visible=visible, others=others
    )  # fmt: skip


def score_blocks(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, *, scaling: float, causal: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the scores of BLOCK queries at a time, in fp32 or better, and which keys are hidden from them.

    Scores are (batch, heads, block, keys); hidden keys are of a shape that broadcasts to it, and their scores are left
    as they are. Without a mask, keys after a causal block are left out.

    Args:
        query, key, mask, scaling, causal: as `attention_statistics` takes them.
    """
    precision = torch.promote_types(query.dtype, torch.float32)
    # Half precision is too coarse for entropies (error 2e-2 with bfloat16, heads.md 2.1).
    key = key.to(precision).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    for start in range(0, query.shape[2], BLOCK):
        block = query[:, :, start : start + BLOCK].to(precision) * scaling
        # Without a mask, no query of the block sees a key after the block: leaving those out halves the work.
        keys = key[:, :, : start + BLOCK] if causal and mask is None else key
        scores = block @ keys.transpose(-1, -2)
        if mask is not None:
            rows = mask[:, :, start : start + BLOCK]
            # Additive masks hide a key by the lowest number of their type and may hold biases for visible keys. Half of
            # that number lies far below any bias.
            hidden = ~rows if rows.dtype == torch.bool else rows <= torch.finfo(rows.dtype).min / 2
            if rows.dtype != torch.bool:
                scores += rows
        else:
            hidden = _later(start, scores) if causal else torch.zeros_like(scores[:1, :1], dtype=torch.bool)
        yield scores, hidden


def _later(start: int, scores: torch.Tensor) -> torch.Tensor:
    queries = torch.arange(start, start + scores.shape[2], device=scores.device)
    return torch.arange(scores.shape[3], device=scores.device) > queries[:, None]


def _of_block(scores: torch.Tensor, hidden: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split off the first token: H(A) = H(sink, rest) + rest * H(A without sink), exact for any sink mass."""
    scores.masked_fill_(hidden, -torch.inf)
    index = first.view(-1, 1, 1, 1).expand(*scores.shape[:3], 1)
    # The first token is removed from the scores and not subtracted from the entropy: with a sink mass near 1,
    # the rest would be a difference of nearly equal numbers.
    to_first = scores.gather(-1, index).squeeze(-1)
    away = scores.scatter_(-1, index, -torch.inf)
    # Subtract the largest score before exponentiating, as every stable softmax does. A query without other keys
    # has only -inf here; clamping the peak avoids -inf minus -inf.
    peak = away.amax(-1, keepdim=True).clamp_min(torch.finfo(away.dtype).min)
    away.sub_(peak).clamp_(min=-FARTHEST)
    weights = away.exp()
    total = weights.sum(-1)
    # Entropy as log-sum-exp minus the mean score: H = log Z - E[s].
    free = total.log() - weights.mul_(away).sum(-1) / total
    # Log odds of the first token against all others; two sigmoids keep both shares exact where one is tiny.
    odds = to_first - (peak.squeeze(-1) + total.log())
    sink, rest = odds.sigmoid(), (-odds).sigmoid()
    entropy = torch.special.entr(sink) + torch.special.entr(rest) + rest * free
    visible = (~hidden).sum(-1).expand_as(sink)
    # A query that sees nothing has -inf minus -inf.
    sink = torch.where(visible >= 1, sink, 0.0)
    others = visible - to_first.isfinite().long()
    return _normalised(entropy, visible), sink, _normalised(free, others), visible, others


def _normalised(entropy: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Divide entropies by the largest possible one, log(keys); 0 for fewer than two keys."""
    # At least log 2 as divisor, because log 1 is 0; such queries are set to 0 below. Rounding must not leave [0, 1].
    largest = keys.clamp_min(2).to(entropy.dtype).log()
    return torch.where(keys >= 2, entropy / largest, 0.0).clamp(0.0, 1.0)


# Watching the attention of layers.

NAME = "raysweep_statistics"
Watcher = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None", float, bool], None]
"""Called with query, key, mask, scaling and causal, as `attention_statistics` takes them."""
_watchers: dict[nn.Module, Watcher] = {}


@contextmanager
def watched_attention(network: Any, watchers: Mapping[nn.Module, Watcher]) -> Iterator[None]:
    """Pass each attention module's queries and keys to its watcher inside the block; outputs are those of sdpa.

    Args:
        network: a transformers model.
        watchers: by attention module, or any module around the one that calls the attention function.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    # Without a mask function of the same name, transformers makes no mask and padding would silently be seen.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = network.config._attn_implementation
    # The attention function receives the module that calls it, which may be a part of the watched module.
    inner = {part: watcher for module, watcher in watchers.items() for part in module.modules()}
    network.set_attn_implementation(NAME)
    _watchers.update(inner)
    try:
        yield
    finally:
        for part in inner:
            del _watchers[part]
        network.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if module in _watchers:
        # Defaults as in transformers' sdpa: causal unless the module says otherwise. A single query is the last
        # position of a cached window and sees all keys.
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        _watchers[module](query.detach(), key.detach(), attention_mask, scale, causal and query.shape[2] > 1)
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **options
    )  # fmt: skip
