"""BERT: a bidirectional encoder; its output projection lies in another module than queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from raysweep import contracts
from raysweep.contracts import AttentionSite
from raysweep.networks.plasticity.sites import encoder_sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family(contracts.Family):
    tasks: ClassVar[tuple[str, ...]] = ("masked_lm", "sequence_classification")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "bert-nano": {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 128, "intermediate_size": 512,
                      "vocab_size": 1024},
    }  # fmt: skip

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        from transformers import BertConfig

        return BertConfig(
            **{**self.sizes[size], "vocab_size": vocab_size},
            max_position_embeddings=seq_len,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0,
            pad_token_id=None,
        )  # fmt: skip

    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
        return encoder_sites(network)

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        attention.num_attention_heads, attention.all_head_size = heads, heads * attention.attention_head_size
