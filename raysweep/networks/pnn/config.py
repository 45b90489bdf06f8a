"""The configuration of a Plastic Neural Network, as transformers stores it."""

from __future__ import annotations

from typing import Any, get_args

from transformers import PreTrainedConfig

from raysweep.errors import ModelError, known_names_hint
from raysweep.networks.pnn.forms import GateForm, Init, StepWeights, Trunk, conflict, mask_fault


class PnnConfig(PreTrainedConfig):
    """Configuration of a PNN; the defaults are the published model with 53,707,323 parameters.

    Args:
        num_steps: how often the trunk is applied, T; the number of layers in a trunk of `layers`.
        trunk: `refiner`, applied T times; `hierarchical`, a refiner of several blocks; `layers`, T of BERT's, not
            shared; `shared_layer`, one of BERT's applied T times (ALBERT, Lan et al. 2020).
        block_widths: feed-forward width of each block of a `hierarchical` trunk.
        gate: how an update is gated, element by element: `query_key` by the agreement of a query of the state and a key
            of the update, `constant` by `gate_value`, `scalar` by one learnt number, `none` not at all.
        init: `reference` as the published code draws; `zero` makes the first update exactly 0.
        tie_word_embeddings: predict with the transposed token embedding.
        step_weights: weight of each step's loss; `ponder`: each token's exit probabilities, from the exit head.
        ponder_prior: probability of leaving at a step in the geometric prior of `ponder`.
        ponder_weight: weight of the divergence from that prior.
        final_norm: normalise the state before it is predicted from.
        input_injection: add the embedding to what the refiner reads at every step.
        step_embedding: add a sinusoidal code of the step to what the refiner reads.
        random_depth: draw T of each training step evenly from 1 to 2 T - 1.
        step_head_mask: [step][head], factors of the heads' outputs at each step; the last row serves all later steps.
        type_vocab_size: number of segments; 0: tokens have no segments.
        image_size, patch_size, num_channels: for networks that read images; without them the network reads tokens.

    Raises:
        ModelError: there is no step, an unknown form, or forms that do not go together.
    """

    model_type = "pnn"

    # Longer than other functions, on purpose: transformers writes a configuration as a flat config.json of its
    # attributes and reads it back as keyword arguments of __init__, so each setting stands once in the signature and
    # once as an attribute.
    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_attention_heads: int = 12,
        intermediate_size: int = 2048,
        num_steps: int = 4,
        max_position_embeddings: int = 128,
        type_vocab_size: int = 0,
        trunk: Trunk = "refiner",
        block_widths: tuple[int, ...] = (1024, 1536, 2048, 1536, 1024),
        gate: GateForm = "query_key",
        gate_value: float = 0.5,
        init: Init = "reference",
        tie_word_embeddings: bool = False,
        step_weights: StepWeights = "linear",
        ponder_prior: float = 0.3,
        ponder_weight: float = 0.01,
        final_norm: bool = False,
        input_injection: bool = False,
        step_embedding: bool = False,
        random_depth: bool = False,
        dropout: float = 0.0,
        step_head_mask: list[list[float]] | None = None,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        image_size: int | list[int] | None = None,
        patch_size: int | None = None,
        num_channels: int | None = None,
        pad_token_id: int | None = None,
        **options: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.num_steps = num_steps
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.trunk = trunk
        # A list, as config.json gives it back: a saved configuration then equals the original.
        self.block_widths = list(block_widths)
        self.gate = gate
        self.gate_value = gate_value
        self.init = init
        self.step_weights = step_weights
        self.ponder_prior = ponder_prior
        self.ponder_weight = ponder_weight
        self.final_norm = final_norm
        self.input_injection = input_injection
        self.step_embedding = step_embedding
        self.random_depth = random_depth
        self.dropout = dropout
        self.step_head_mask = step_head_mask
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.pad_token_id = pad_token_id
        self._check()
        super().__init__(tie_word_embeddings=tie_word_embeddings, **options)

    def _check(self) -> None:
        if self.num_steps < 1:
            raise ModelError(f"num_steps = {self.num_steps}: a network has at least 1 step.")
        for name, form in (("trunk", Trunk), ("gate", GateForm), ("init", Init), ("step_weights", StepWeights)):
            value = getattr(self, name)
            if value not in get_args(form):
                raise ModelError(f"{name} = {value!r}: {known_names_hint(value, get_args(form))}")
        fault = conflict(self.trunk, self.gate, self.init, self.random_depth)
        if fault is None and self.step_head_mask is not None:
            fault = mask_fault(self.step_head_mask, self.num_attention_heads)
        if fault is not None:
            raise ModelError(fault)

    @property
    def num_hidden_layers(self) -> int:
        """Number of attention layers with weights of their own; transformers' name for it."""
        return {"refiner": 1, "hierarchical": len(self.block_widths), "layers": self.num_steps, "shared_layer": 1}[
            self.trunk
        ]

    @property
    def shared(self) -> bool:
        """Whether the same weights serve at every step."""
        return self.trunk != "layers"


class PnnVisionConfig(PnnConfig):
    """Configuration of a PNN over the patches of an image."""

    model_type = "pnn_vision"

    # Without an __init__ here, transformers generates one for the subclass that leaves the defaults above out.
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
