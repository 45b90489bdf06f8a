"""Helpers by which families describe where heads live: which slices of which parameters belong to each head."""

from __future__ import annotations

from typing import Any

from raysweep.contracts import AttentionSite, Place


def linear_rows(prefix: str, attention: Any, projection: str) -> list[Place]:
    """Return the places of heads in the rows of a linear projection, and in its bias if it has one."""
    # nn.Linear stores (out, in): the heads of a projection to heads are its rows, dimension 0.
    bias = [(f"{prefix}.{projection}.bias", 0, 0)] if getattr(attention, projection).bias is not None else []
    return [(f"{prefix}.{projection}.weight", 0, 0), *bias]


def norm_gain(block: Any, prefix: str, norm: str) -> str | None:
    """Return the name of a norm's gain, or None if the norm has none."""
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
            # Qwen3 sets the head width apart from the model width, so it is read from the module.
            head_dim=block.self_attn.head_dim,
            query=linear_rows(name, block.self_attn, "q_proj"),
            key=linear_rows(name, block.self_attn, "k_proj"),
            value=linear_rows(name, block.self_attn, "v_proj"),
            # The output projection reads the heads: they are its columns, dimension 1. Its bias belongs to no head.
            output=[(f"{name}.o_proj.weight", 1, 0)],
            gain=norm_gain(block, f"model.layers.{layer}", "input_layernorm"),
        )
        for layer, block in enumerate(network.model.layers)
        for name in [f"model.layers.{layer}.self_attn"]
    ]


def encoder_sites(network: Any) -> list[AttentionSite]:
    """Return the sites of an encoder built as BERT: queries, keys and values in `self`, the projection in `output`."""
    # BERT normalises behind its heads and not in front of them, so its sites have no gain. The prefix differs: "bert"
    # or "roberta".
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
