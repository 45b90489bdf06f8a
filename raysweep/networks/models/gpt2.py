"""GPT-2 and DistilGPT-2: fused query-key-value in a Conv1D, whose weight is (in, out)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from raysweep import contracts
from raysweep.contracts import AttentionSite
from raysweep.networks.plasticity.sites import norm_gain

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family(contracts.Family):
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-pico": {"n_layer": 2, "n_head": 8, "n_embd": 64, "vocab_size": 1024},
        "gpt2-nano": {"n_layer": 4, "n_head": 8, "n_embd": 128, "vocab_size": 1024},
        "gpt2-micro": {"n_layer": 6, "n_head": 8, "n_embd": 256, "vocab_size": 2048},
        "gpt2-mini": {"n_layer": 8, "n_head": 8, "n_embd": 512, "vocab_size": 8192},
    }

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        from transformers import GPT2Config

        return GPT2Config(
            **{**self.sizes[size], "vocab_size": vocab_size},
            n_positions=seq_len,
            # GPT-2's own activation ("gelu_new") in one kernel instead of eight.
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip

    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
        config = network.config
        width = config.n_embd
        return [
            AttentionSite(
                layer=layer,
                attention=block.attn,
                projection=block.attn.c_proj,
                num_heads=config.n_head,
                num_key_value_heads=config.n_head,
                head_dim=width // config.n_head,
                # Conv1D stores (in, out): in c_attn heads are columns (dimension 1), in three blocks of the
                # layer's width, for queries, keys and values; in c_proj they are rows.
                query=[(f"{name}.c_attn.weight", 1, 0), (f"{name}.c_attn.bias", 0, 0)],
                key=[(f"{name}.c_attn.weight", 1, width), (f"{name}.c_attn.bias", 0, width)],
                value=[(f"{name}.c_attn.weight", 1, 2 * width), (f"{name}.c_attn.bias", 0, 2 * width)],
                output=[(f"{name}.c_proj.weight", 0, 0)],
                gain=norm_gain(block, f"transformer.h.{layer}", "ln_1"),
            )
            for layer, block in enumerate(network.transformer.h)
            for name in [f"transformer.h.{layer}.attn"]
        ]

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        # `split_size` is where the fused output is cut into queries, keys and values.
        attention.num_heads, attention.split_size = heads, heads * attention.head_dim
