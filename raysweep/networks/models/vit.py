"""ViT: an encoder of image patches and one class token."""

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
    tasks: ClassVar[tuple[str, ...]] = ("image_classification",)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "vit-nano": {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 64, "intermediate_size": 128,
                     "image_size": 8, "patch_size": 2, "num_channels": 1},
    }  # fmt: skip

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        """Return the configuration of a size; images have no vocabulary and no window, so both arguments are unused."""
        from transformers import ViTConfig

        return ViTConfig(**self.sizes[size], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
        base: Any = network.vit
        return [
            AttentionSite(
                layer=layer,
                attention=block.attention,
                projection=block.attention.o_proj,
                num_heads=block.attention.num_attention_heads,
                num_key_value_heads=block.attention.num_attention_heads,
                head_dim=block.attention.head_dim,
                query=linear_rows(name, block.attention, "q_proj"),
                key=linear_rows(name, block.attention, "k_proj"),
                value=linear_rows(name, block.attention, "v_proj"),
                output=[(f"{name}.o_proj.weight", 1, 0)],
                gain=norm_gain(block, f"vit.layers.{layer}", "layernorm_before"),
            )
            for layer, block in enumerate(base.layers)
            for name in [f"vit.layers.{layer}.attention"]
        ]

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        attention.num_attention_heads = heads
