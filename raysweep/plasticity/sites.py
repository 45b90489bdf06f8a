"""Where heads live in a network: which slices of which parameters belong to each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Role = Literal["query", "key", "value", "output"]
Place = tuple[str, int, int]
"""(parameter, dim, offset): a tensor that holds heads one after the other along `dim`, from `offset` on."""


@dataclass(frozen=True, kw_only=True)
class HeadSlice:
    """The part of one parameter that belongs to one head: `parameter.narrow(dim, start, length)`."""

    parameter: str
    role: Role
    dim: int
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class AttentionSite:
    """Where one layer's heads live.

    Head h's output enters `projection` at columns [h * head_dim, (h + 1) * head_dim) of its input, of shape
    (batch, tokens, num_heads * head_dim). Query heads share `num_heads // num_key_value_heads` to a key/value head.
    """

    layer: int
    attention: nn.Module
    projection: nn.Module
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    query: Sequence[Place]
    key: Sequence[Place]
    value: Sequence[Place]
    output: Sequence[Place]
    interleaved: int = 1
    """Head widths from one head to the next in query, key and value; 3 where each head keeps its three together."""
    gain: str | None = None
    """Parameter of the gain of the layer's norm in front of its heads, (width,); None where it has none there."""

    def head_slices(self, head: int) -> list[HeadSlice]:
        """Return what belongs to a query head alone; with one key/value head each, that includes key and value."""
        slices = self._slices("query", self.query, head) + self._slices("output", self.output, head)
        return slices if self.grouped else slices + self.group_slices(head)

    def group_slices(self, group: int) -> list[HeadSlice]:
        """Return the key and value slices of one key/value head."""
        return self._slices("key", self.key, group) + self._slices("value", self.value, group)

    @property
    def grouped(self) -> bool:
        return self.num_key_value_heads != self.num_heads

    def group_of(self, head: int) -> int:
        return head * self.num_key_value_heads // self.num_heads

    def _slices(self, role: Role, where: Sequence[Place], index: int) -> list[HeadSlice]:
        step = self.head_dim * (1 if role == "output" else self.interleaved)
        return [
            HeadSlice(parameter=name, role=role, dim=dim, start=offset + index * step, length=self.head_dim)
            for name, dim, offset in where
        ]


def linear_rows(prefix: str, attention: Any, projection: str) -> list[Place]:
    """Return the places of heads in the rows of a linear projection and, where it has one, in its bias."""
    bias = [(f"{prefix}.{projection}.bias", 0, 0)] if getattr(attention, projection).bias is not None else []
    return [(f"{prefix}.{projection}.weight", 0, 0), *bias]


def norm_gain(block: Any, prefix: str, norm: str) -> str | None:
    """Return the name of a norm's gain, or None where it has none."""
    return None if getattr(block, norm).weight is None else f"{prefix}.{norm}.weight"


def decoder_sites(network: Any) -> list[AttentionSite]:
    """Return the sites of a decoder built as Llama: separate projections, named q_proj, k_proj, v_proj and o_proj."""
    config = network.config
    return [
        AttentionSite(
            layer=layer,
            attention=block.self_attn,
            projection=block.self_attn.o_proj,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=block.self_attn.head_dim,
            query=linear_rows(name, block.self_attn, "q_proj"),
            key=linear_rows(name, block.self_attn, "k_proj"),
            value=linear_rows(name, block.self_attn, "v_proj"),
            output=[(f"{name}.o_proj.weight", 1, 0)],
            gain=norm_gain(block, f"model.layers.{layer}", "input_layernorm"),
        )
        for layer, block in enumerate(network.model.layers)
        for name in [f"model.layers.{layer}.self_attn"]
    ]


def encoder_sites(network: Any) -> list[AttentionSite]:
    """Return the sites of an encoder built as BERT: queries, keys and values in `self`, the projection in `output`."""
    config, base = network.config, network.base_model_prefix
    return [
        AttentionSite(
            layer=layer,
            attention=block.attention.self,
            projection=block.attention.output.dense,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            head_dim=block.attention.self.attention_head_size,
            query=linear_rows(f"{name}.self", block.attention.self, "query"),
            key=linear_rows(f"{name}.self", block.attention.self, "key"),
            value=linear_rows(f"{name}.self", block.attention.self, "value"),
            output=[(f"{name}.output.dense.weight", 1, 0)],
        )
        for layer, block in enumerate(network.base_model.encoder.layer)
        for name in [f"{base}.encoder.layer.{layer}.attention"]
    ]
