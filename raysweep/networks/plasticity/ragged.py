"""Attention where key/value heads have unequal numbers of query heads: each query head looks up its own.

Stock code repeats every key/value head equally often, so after uneven removal it would pair query heads with wrong
keys, without an error. Here a layer's `kv_index` says which key/value head each query head uses, and the layer refuses
every other attention function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from raysweep.errors import ModelError

RAGGED = "raysweep_ragged"
"""The name of the attention function, as in `network.set_attn_implementation`."""


def ragged_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Scaled dot-product attention; layers with a `kv_index` gather keys and values (batch, heads, tokens, width)."""
    index: Any = getattr(module, "kv_index", None)
    if index is not None:
        # A gather copies keys and values once per query head. In exchange any removal is exact, and so is
        # generation with a cache, which holds each key/value head once.
        key, value = key.index_select(1, index), value.index_select(1, index)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(RAGGED, ragged_attention)
# Without a mask function of the same name, transformers makes no mask and padding would silently be ignored.
AttentionMaskInterface.register(RAGGED, sdpa_mask)


def look_up_keys(attention: nn.Module, kv_index: Sequence[int]) -> None:
    """Tell a layer the key/value head of each query head, and make it refuse stock attention."""
    # A buffer, so that it moves with the layer to its device; not persistent, because it follows from the head map,
    # which an export stores anyway.
    attention.register_buffer("kv_index", torch.tensor(kv_index), persistent=False)
    attention.register_forward_pre_hook(_refuse_stock_attention)


def _refuse_stock_attention(attention: Any, inputs: Any) -> None:
    # Checked in every forward pass, because users can switch the attention function at any time.
    chosen = attention.config._attn_implementation
    if chosen != RAGGED:
        raise ModelError(
            f"layer {attention.layer_idx} has query heads removed unevenly; attention {chosen!r} would pair them with "
            f"wrong keys. Use set_attn_implementation({RAGGED!r}), or an export in dense format."
        )
