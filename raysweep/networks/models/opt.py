"""OPT: separate linear projections with biases; queries are scaled before the product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from raysweep import contracts
from raysweep.contracts import AttentionSite
from raysweep.networks.plasticity.sites import linear_rows, norm_gain

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family(contracts.Family):
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "opt-nano": {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 128, "ffn_dim": 512,
                     "vocab_size": 1024},
    }  # fmt: skip

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        from transformers import OPTConfig

        shape = {**self.sizes[size], "vocab_size": vocab_size}
        return OPTConfig(
            **shape,
            word_embed_proj_dim=shape["hidden_size"],
            max_position_embeddings=seq_len,
            dropout=0.0, attention_dropout=0.0, layerdrop=0.0,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip

    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
        config = network.config
        return [
            AttentionSite(
                layer=layer,
                attention=block.self_attn,
                projection=block.self_attn.out_proj,
                num_heads=config.num_attention_heads,
                num_key_value_heads=config.num_attention_heads,
                head_dim=config.hidden_size // config.num_attention_heads,
                query=linear_rows(name, block.self_attn, "q_proj"),
                key=linear_rows(name, block.self_attn, "k_proj"),
                value=linear_rows(name, block.self_attn, "v_proj"),
                output=[(f"{name}.out_proj.weight", 1, 0)],
                gain=gain,
            )
            for layer, block in enumerate(network.model.decoder.layers)
            for prefix in [f"model.decoder.layers.{layer}"]
            for name in [f"{prefix}.self_attn"]
            # opt-350m normalises behind its attention instead of in front; then no gain acts on the heads'
            # input.
            for gain in [norm_gain(block, prefix, "self_attn_layer_norm") if config.do_layer_norm_before else None]
        ]

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        # OPT uses this number in a view. A stale one may fit without an error and scramble tokens (heads.md
        # 3.1).
        attention.num_heads = heads
