"""PNN: one refiner applied several times, or a stack of layers that it is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import AttentionSite
from raysweep.errors import ModelError
from raysweep.job import bounds
from raysweep.networks.plasticity.sites import linear_rows
from raysweep.networks.pnn.forms import GateForm, Init, StepWeights, Trunk, conflict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Width = Annotated[int, Field(ge=1, le=bounds.WIDTH)]
Share = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(ge=-bounds.NORM, le=bounds.NORM)]


@dataclass(frozen=True, kw_only=True)
class Family(contracts.Family):
    """Fields are options of a job's `model` section for the sizes below; see pnn/config.py for what each does."""

    tasks: ClassVar[tuple[str, ...]] = ("masked_lm", "sequence_classification")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "pnn-nano": {"hidden_size": 128, "num_attention_heads": 8, "intermediate_size": 256, "vocab_size": 1024},
        "pnn-pico": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 320},
        "pnn-micro": {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 640, "vocab_size": 8192},
        "pnn-base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048, "vocab_size": 30522},
    }  # fmt: skip
    recurrent_trunks: ClassVar[tuple[str, ...]] = ("refiner", "hierarchical", "shared_layer")
    """Trunks whose tokens can leave step by step: `cycle.infer`."""
    compiles: ClassVar[bool] = True
    num_steps: Annotated[int, Field(ge=1, le=bounds.LAYERS)] = 4
    """Applications of the trunk; the number of layers in a trunk of `layers`."""
    trunk: Trunk = "refiner"
    """`refiner` is one module applied at every step; `hierarchical` a refiner of several blocks; `layers` a stack of
    BERT's layers; `shared_layer` one of BERT's layers applied at every step, as in ALBERT."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layer. Default: the size's own."""
    block_widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=bounds.LAYERS)] | None = None
    """Feed-forward width of each block of a `hierarchical` trunk. Default: 1024, 1536, 2048, 1536, 1024."""
    gate: GateForm = "query_key"
    """How an update of the state is gated, element by element: `query_key` by the agreement of a query of the state and
    a key of the update, `constant` by `gate_value`, `scalar` by one learnt number, `none` not at all."""
    gate_value: Annotated[float, Field(gt=0, le=bounds.NORM)] = 0.5
    """The gate of `constant`."""
    init: Init = "reference"
    """First weights: `reference` as in the published code; `zero` makes the first update exactly 0."""
    tie_word_embeddings: bool = False
    """Predict tokens with the transposed token embedding."""
    step_weights: StepWeights | None = None
    """Weight of each step's loss; `ponder` weighs them for each token as the exit head says. Default: `linear`; for
    stacks of layers `last`."""
    ponder_prior: Share = 0.3
    """Probability of leaving at a step, in the geometric prior of `ponder`."""
    ponder_weight: Annotated[float, Field(ge=0, le=bounds.NORM)] = 0.01
    """Weight of the divergence from this prior in the loss."""
    final_norm: bool = False
    """Normalise the state before tokens are predicted from it."""
    input_injection: bool = False
    """Add the embedding to the input of the refiner at every step."""
    step_embedding: bool = False
    """Add a sinusoidal code of the step to the input of the refiner."""
    random_depth: bool = False
    """Draw the number of steps anew for each training step, evenly from 1 to 2 x num_steps - 1."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of activations set to 0 in training."""
    type_vocab_size: Annotated[int, Field(ge=0, le=bounds.WIDTH)] = 0
    """Number of segments to which a token can belong; 0 for no segments."""
    step_head_mask: Annotated[list[list[Factor]], Field(max_length=bounds.LAYERS)] | None = None
    """Factor on the output of each head as `[step][head]`; later steps use the last row. Default: 1 everywhere."""

    def __post_init__(self) -> None:
        fault = conflict(self.trunk, self.gate, self.init, self.random_depth)
        if fault is not None:
            raise ValueError(fault)

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        # Importing it registers our networks with transformers' automatic classes.
        import raysweep.networks.pnn.network  # noqa: F401
        from raysweep.networks.pnn.config import PnnConfig

        text = {"vocab_size": vocab_size, "max_position_embeddings": seq_len}
        # Later mappings win: fields override the size, and the data decides vocabulary and window.
        return PnnConfig(**self.sizes[size] | self.options(size) | text)

    def options(self, size: str) -> dict[str, Any]:
        """Return the configuration values of the fields, and the standard deviation of the first weights."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        # Layers that are not a refiner are trained as BERT is, by their last state alone.
        if self.step_weights is None:
            own["step_weights"] = "linear" if self.trunk in ("refiner", "hierarchical") else "last"
        # The published 0.02 belongs to a width of 768. A sum over `width` terms grows with sqrt(width), so narrower
        # states need larger weights for sums of the same size.
        own["initializer_range"] = 0.02 * math.sqrt(768 / self.sizes[size]["hidden_size"])
        # None means "the size's own": left out, so that it does not override the size.
        return {name: value for name, value in own.items() if value is not None}

    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
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
        # The mask has a number for each original head and would not fit the remaining ones.
        if attention.config.step_head_mask is not None:
            raise ModelError(
                "a network with step_head_mask cannot be compacted, as its heads differ from step to step: use the "
                "dense format."
            )
        attention.num_attention_heads = heads


def _attentions(network: PreTrainedModel) -> list[tuple[str, Any]]:
    """Return every attention module by name; one that serves at every step is listed once."""
    return [(name, module) for name, module in network.named_modules() if name.endswith(".attention")]
