"""The networks: a trunk over tokens or image patches, and what is predicted from its states."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers import initialization as initial
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from raysweep.errors import ModelError
from raysweep.networks.plasticity.objective import label_losses
from raysweep.networks.pnn.config import PnnConfig, PnnVisionConfig
from raysweep.networks.pnn.parts import (
    Gate,
    HierarchicalRefiner,
    InProjection,
    Layer,
    Refiner,
    UpdateNorm,
    first_raw_temperature,
)
from raysweep.networks.pnn.supervision import divergence, exit_probabilities, step_weights


@dataclass
class Predicted(ModelOutput):
    """Logits of the last step."""

    logits: torch.Tensor | None = None


class Embeddings(nn.Module):
    """Tokens, positions and segments, or the patches of an image behind a class token; normalised."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__()
        width = config.hidden_size
        if config.image_size is None:
            self.tokens = nn.Embedding(config.vocab_size, width)
            count = config.max_position_embeddings
        else:
            self.patches = nn.Conv2d(config.num_channels or 1, width, config.patch_size or 1, config.patch_size or 1)
            self.class_token = nn.Parameter(torch.zeros(1, 1, width))
            sides = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
            count = math.prod(side // (config.patch_size or 1) for side in sides) + 1
        self.positions = nn.Embedding(count, width)
        if config.type_vocab_size:
            self.segments = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        if hasattr(self, "tokens"):
            embedded = self.tokens(inputs)
        else:
            patches = self.patches(inputs.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
            embedded = torch.cat([self.class_token.expand(len(inputs), -1, -1), patches], dim=1)
        embedded = embedded + self.positions.weight[: embedded.shape[1]]
        if hasattr(self, "segments"):
            of = torch.zeros_like(inputs) if token_type_ids is None else token_type_ids
            embedded = embedded + self.segments(of)
        return self.dropout(self.norm(embedded))


class PnnPreTrainedModel(PreTrainedModel):
    config_class: type[PnnConfig] = PnnConfig
    base_model_prefix = "pnn"
    _supports_sdpa = True
    _supports_attention_backend = True
    config: PnnConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """`reference`: N(0, 0.02), but queries, keys and values Xavier-uniform as one fused matrix (pnn.md, section 1).

        `zero`: no gain on the norm behind the feed-forward part, so that the first update is exactly 0.
        """
        # transformers asks for modules with parameters of their own alone.
        if isinstance(module, InProjection):
            bound = math.sqrt(6 / (4 * self.config.hidden_size))
            initial.uniform_(module.weight, -bound, bound)
            initial.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            initial.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                initial.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            closed = isinstance(module, UpdateNorm) and self.config.init == "zero"
            initial.constant_(module.weight, 0.0 if closed else 1.0)
            initial.zeros_(module.bias)
        elif isinstance(module, Gate) and module.form == "query_key":
            initial.constant_(module.raw_temperature, first_raw_temperature(self.config.hidden_size))
        elif isinstance(module, Gate) and module.form == "scalar":
            initial.zeros_(module.logit)
        elif isinstance(module, Embeddings) and hasattr(module, "class_token"):
            initial.normal_(module.class_token, mean=0.0, std=self.config.initializer_range)

    def undecayed(self) -> set[str]:
        """Return the names of the matrices without weight decay: the embeddings, and a decoder that is tied to one."""
        tables = [name for name, module in self.named_modules() if isinstance(module, nn.Embedding)]
        class_tokens = [name for name, _ in self.named_parameters() if name.endswith("class_token")]
        return {*(f"{name}.weight" for name in tables), *class_tokens}


class PnnModel(PnnPreTrainedModel):
    """The trunk: from inputs to the states after each step."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        if config.trunk == "layers":
            self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_steps))
        else:
            kinds: dict[str, type[nn.Module]]
            kinds = {"refiner": Refiner, "hierarchical": HierarchicalRefiner, "shared_layer": Layer}
            self.refiner: nn.Module = kinds[config.trunk](config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.tokens = value

    def states(
        self,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        steps: int | None = None,
    ) -> list[torch.Tensor]:
        """Return the embedding and the state after each step, (batch, tokens, width) each, T + 1 of them.

        Args:
            inputs: token ids (batch, tokens), or pixels (batch, channels, height, width).
            attention_mask: (batch, tokens), 0 at padding.
            steps: T; the configuration's unless given.

        Raises:
            ModelError: no step at all, or more than a trunk of layers has.
        """
        steps = self.config.num_steps if steps is None else steps
        self._check_steps(steps)
        embedded = self.embeddings(inputs, token_type_ids)
        mask = self.mask(embedded, attention_mask)
        states = [embedded]
        for step in range(steps):
            states.append(self.step(step, states[-1], embedded, mask))
        return states

    def _check_steps(self, steps: int) -> None:
        if steps < 1:
            raise ModelError(f"num_steps = {steps}: a network takes at least 1 step.")
        if steps > self.config.num_steps and not self.config.shared:
            raise ModelError(f"num_steps = {steps}: a trunk of layers takes no more than its {self.config.num_steps}.")

    def mask(self, embedded: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return a mask as the attention interface takes it."""
        return create_bidirectional_mask(config=self.config, inputs_embeds=embedded, attention_mask=attention_mask)

    def step(self, step: int, state: torch.Tensor, embedded: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the state after step `step`, from 0."""
        module = self.refiner if self.config.shared else self.layers[step]
        read = self.read(step, state, embedded)
        return module(state, read, attention_mask=mask, head_mask=self.head_mask(step, state))

    def read(self, step: int, state: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Return what a step reads: the state, with the embedding and the code of the step where configured."""
        if self.config.input_injection:
            state = state + embedded
        if self.config.step_embedding:
            state = state + step_code(step, self.config.hidden_size).to(state)
        return state

    def head_mask(self, step: int, state: torch.Tensor) -> torch.Tensor | None:
        rows = self.config.step_head_mask
        return None if rows is None else state.new_tensor(rows[min(step, len(rows) - 1)])

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        num_steps: int | None = None,
        **options: Any,
    ) -> Any:
        inputs = pixel_values if input_ids is None else input_ids
        assert inputs is not None
        states = self.states(inputs, attention_mask, token_type_ids, num_steps)
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))


def step_code(step: int, width: int) -> torch.Tensor:
    """Return the sinusoidal code of a step (Universal Transformer, Dehghani et al. 2019, section 2.1), (width,)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = (step + 1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten()[:width]


class PnnPredictor(PnnPreTrainedModel, ABC):
    """A trunk with a head that predicts from its states, and the loss over steps that it is trained by."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__(config)
        self.pnn = PnnModel(config)
        if config.final_norm:
            self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        if config.step_weights == "ponder":
            self.exit_head = nn.Linear(config.hidden_size, 1)
        self._depth: int | None = None

    @abstractmethod
    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of states, (..., width) to (..., classes)."""

    def predicted_from(self, state: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Return what is predicted from: the states at flat positions, all of them, or a classifier's first."""
        return state.flatten(0, -2) if positions is None else state.flatten(0, -2)[positions]

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.final_norm(hidden) if self.config.final_norm else hidden

    def begin_step(self, seed: int) -> None:
        """Prepare a training step: draw its depth, where depth is random; the same on every rank."""
        most = 2 * self.config.num_steps - 1
        self._depth = random.Random(seed).randint(1, most) if self.config.random_depth else None

    def training_losses(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of each label over all steps, each step weighted; (labels,), flat.

        Args:
            labels: (labels,), in the order of what is predicted from.
            positions: flat positions of the labels among (batch, tokens); None: all, or each example's first.
        """
        states = self.pnn.states(inputs, attention_mask, token_type_ids, self._depth)[1:]
        read = [self.predicted_from(state, positions) for state in states]
        if self.config.step_weights == "ponder":
            leave = torch.stack([self.exit_head(state).squeeze(-1).float() for state in read])
            weights = exit_probabilities(leave)
            losses = torch.stack([label_losses(self.predict(state), labels) for state in read])
            penalty = self.config.ponder_weight * divergence(weights, self.config.ponder_prior)
            return (weights * losses).sum(0) + penalty
        weighted = zip(step_weights(self.config.step_weights, len(read)), read, strict=True)
        return torch.stack([w * label_losses(self.predict(state), labels) for w, state in weighted if w]).sum(0)

    def uses(self, module: str, *, training: bool) -> int:
        """Return how often a token passes through a module, by its name: a step's once a step, a head's once for each
        step that is predicted from, an exit head in training only."""
        if ".refiner." in f".{module}.":
            return self.config.num_steps
        if module == "exit_head" and not training:
            return 0
        if module.split(".")[0] in ("decoder", "classifier", "exit_head") and training:
            if self.config.step_weights == "ponder":
                return self.config.num_steps
            return sum(weight > 0 for weight in step_weights(self.config.step_weights, self.config.num_steps))
        return 1

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        num_steps: int | None = None,
        **options: Any,
    ) -> Predicted:
        state = self.pnn(input_ids, attention_mask, token_type_ids, pixel_values, num_steps).last_hidden_state
        return Predicted(logits=self.logits(state))

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """Return the logits of a state, (batch, tokens, width) to (batch, tokens, classes)."""
        return self.predict(state)


class PnnForMaskedLM(PnnPredictor):
    _tied_weights_keys = {"decoder.weight": "pnn.embeddings.tokens.weight"}

    def __init__(self, config: PnnConfig) -> None:
        super().__init__(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.decoder = value

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(hidden))


class PnnClassifier(PnnPredictor):
    """Predicts from the first token alone."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(hidden))

    def predicted_from(self, state: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        return state[:, 0]

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        return self.predict(state[:, 0])


class PnnForSequenceClassification(PnnClassifier):
    pass


class PnnForImageClassification(PnnClassifier):
    config_class = PnnVisionConfig
    main_input_name = "pixel_values"


AutoConfig.register("pnn", PnnConfig)
AutoConfig.register("pnn_vision", PnnVisionConfig)
AutoModel.register(PnnConfig, PnnModel)
AutoModelForMaskedLM.register(PnnConfig, PnnForMaskedLM)
AutoModelForSequenceClassification.register(PnnConfig, PnnForSequenceClassification)
AutoModelForImageClassification.register(PnnVisionConfig, PnnForImageClassification)
