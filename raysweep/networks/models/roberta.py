"""RoBERTa: as BERT, with positions that are counted from the padding token's id on."""

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
        "roberta-nano": {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 128,
                         "intermediate_size": 512, "vocab_size": 1024},
    }  # fmt: skip

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        from transformers import RobertaConfig

        return RobertaConfig(
            **{**self.sizes[size], "vocab_size": vocab_size},
            # Positions are counted from pad_token_id + 1, so the table has two rows before the first token's.
            max_position_embeddings=seq_len + 2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0,
            # RoBERTa's own padding id. Where the data has another one, one position is wasted and nothing else.
            pad_token_id=1,
        )  # fmt: skip

    def reserved_positions(self, config: Any) -> int:
        """Return the rows of the position table before the first token's."""
        return int(config.pad_token_id) + 1

    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
        return encoder_sites(network)

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        attention.num_attention_heads, attention.all_head_size = heads, heads * attention.attention_head_size
