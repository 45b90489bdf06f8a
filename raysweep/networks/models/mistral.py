"""Mistral: as Llama; a query sees at most `sliding_window` keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from raysweep import contracts
from raysweep.contracts import AttentionSite
from raysweep.networks.plasticity.sites import decoder_sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family(contracts.Family):
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "mistral-nano": {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 128,
                       "intermediate_size": 352, "vocab_size": 1024},
    }  # fmt: skip

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        from transformers import MistralConfig

        return MistralConfig(
            **{**self.sizes[size], "vocab_size": vocab_size},
            max_position_embeddings=seq_len,
            attention_dropout=0.0,
            tie_word_embeddings=True,
            # From-scratch models see their whole window; a pretrained configuration keeps its own sliding
            # window.
            sliding_window=None,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip

    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
        return decoder_sites(network)

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        attention.num_key_value_groups = heads // key_value_heads
