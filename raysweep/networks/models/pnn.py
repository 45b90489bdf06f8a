"""PNN: one refiner applied several times, or a stack of layers that it is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import AttentionSite
from raysweep.errors import ModelError
from raysweep.networks.plasticity.sites import linear_rows
from raysweep.networks.pnn.forms import GateForm, Init, StepWeights, Trunk, conflict

if TYPE_CHECKING:
    from torch import nn

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Family(contracts.Family):
    """Its fields are options of a job's `model` section for the sizes below; see pnn/config.py for what each does."""

    tasks: ClassVar[tuple[str, ...]] = ("masked_lm", "sequence_classification")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "pnn-nano": {"hidden_size": 128, "num_attention_heads": 8, "intermediate_size": 256, "vocab_size": 1024},
        "pnn-pico": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 320},
        "pnn-micro": {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 640, "vocab_size": 8192},
        "pnn-base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048, "vocab_size": 30522},
    }  # fmt: skip
    recurrent_trunks: ClassVar[tuple[str, ...]] = ("refiner", "hierarchical", "shared_layer")
    """Those whose tokens can leave step by step: `cycle.infer`."""
    compiles: ClassVar[bool] = True
    num_steps: Annotated[int, Field(ge=1)] = 4
    trunk: Trunk = "refiner"
    intermediate_size: Width | None = None
    """Default: the size's own."""
    block_widths: tuple[Width, ...] | None = None
    gate: GateForm = "query_key"
    gate_value: Annotated[float, Field(gt=0)] = 0.5
    init: Init = "reference"
    tie_word_embeddings: bool = False
    step_weights: StepWeights | None = None
    """Default: `linear`; for stacks of layers `last`."""
    ponder_prior: Share = 0.3
    ponder_weight: Annotated[float, Field(ge=0)] = 0.01
    final_norm: bool = False
    input_injection: bool = False
    step_embedding: bool = False
    random_depth: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    type_vocab_size: Annotated[int, Field(ge=0)] = 0
    step_head_mask: list[list[float]] | None = None

    def __post_init__(self) -> None:
        fault = conflict(self.trunk, self.gate, self.init, self.random_depth)
        if fault is not None:
            raise ValueError(fault)

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        import raysweep.networks.pnn.network  # noqa: F401  # the automatic classes know ours from here on
        from raysweep.networks.pnn.config import PnnConfig

        text = {"vocab_size": vocab_size, "max_position_embeddings": seq_len}
        return PnnConfig(**self.sizes[size] | self.options(size) | text)

    def options(self, size: str) -> dict[str, Any]:
        """Return what the fields say of a configuration, and how wide its first weights are drawn."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.step_weights is None:
            own["step_weights"] = "linear" if self.trunk in ("refiner", "hierarchical") else "last"
        # As the published model's at its width: sums over a narrower state are then as large.
        own["initializer_range"] = 0.02 * math.sqrt(768 / self.sizes[size]["hidden_size"])
        return {name: value for name, value in own.items() if value is not None}

    def sites(self, network: nn.Module) -> list[AttentionSite]:
        return [
            AttentionSite(
                layer=layer,
                attention=attention,
                projection=attention.o_proj,
                num_heads=attention.num_attention_heads,
                num_key_value_heads=attention.num_attention_heads,
                head_dim=attention.head_dim,
                query=linear_rows(name, attention, "q_proj"),
                key=linear_rows(name, attention, "k_proj"),
                value=linear_rows(name, attention, "v_proj"),
                output=[(f"{name}.o_proj.weight", 1, 0)],
            )
            for layer, (name, attention) in enumerate(_attentions(network))
        ]

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        if attention.config.step_head_mask is not None:
            raise ModelError("heads that differ from step to step cannot be taken out: use the dense format.")
        attention.num_attention_heads = heads


def _attentions(network: nn.Module) -> list[tuple[str, Any]]:
    """Return every attention module with weights of its own, by name; one that serves at every step is there once."""
    return [(name, module) for name, module in network.named_modules() if name.endswith(".attention")]
