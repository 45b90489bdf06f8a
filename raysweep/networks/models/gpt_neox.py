"""GPT-NeoX and Pythia: one projection for all, where each head keeps its query, key and value together."""

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
        "pythia-nano": {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 128, "intermediate_size": 512,
                        "vocab_size": 1024},
    }  # fmt: skip

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        from transformers import GPTNeoXConfig

        return GPTNeoXConfig(
            **{**self.sizes[size], "vocab_size": vocab_size},
            max_position_embeddings=seq_len,
            attention_dropout=0.0, hidden_dropout=0.0,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip

    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
        base: Any = network.gpt_neox
        heads = base.config.num_attention_heads
        width = base.config.hidden_size // heads
        return [
            AttentionSite(
                layer=layer,
                attention=block.attention,
                projection=block.attention.dense,
                num_heads=heads,
                num_key_value_heads=heads,
                head_dim=width,
                # One fused projection whose rows go head by head: head h has its query at h * 3 * width, then
                # its key and its value. Hence offsets of one head width, and `interleaved=3` for the distance
                # from one head to the next.
                query=[(parameter, dim, 0) for parameter, dim, _ in fused],
                key=[(parameter, dim, width) for parameter, dim, _ in fused],
                value=[(parameter, dim, 2 * width) for parameter, dim, _ in fused],
                output=[(f"{name}.dense.weight", 1, 0)],
                interleaved=3,
                gain=norm_gain(block, f"gpt_neox.layers.{layer}", "input_layernorm"),
            )
            for layer, block in enumerate(base.layers)
            for name in [f"gpt_neox.layers.{layer}.attention"]
            for fused in [linear_rows(name, block.attention, "query_key_value")]
        ]

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        """Do nothing: this attention infers its number of heads from the width of its projection."""
