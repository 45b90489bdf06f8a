"""Whole networks: a trunk, a head that predicts from its states, and the loss over the steps."""

from __future__ import annotations

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
)
from transformers.utils import ModelOutput

from raysweep.networks.plasticity.objective import label_losses
from raysweep.networks.pnn.config import PnnConfig, PnnVisionConfig
from raysweep.networks.pnn.supervision import divergence, exit_probabilities, step_weights
from raysweep.networks.pnn.trunk import PnnModel, PnnPreTrainedModel


@dataclass
class Predicted(ModelOutput):
    """Logits of the last step."""

    logits: torch.Tensor | None = None


class PnnPredictor(PnnPreTrainedModel, ABC):
    """A trunk with a head that predicts from its states, and the training loss over the steps."""

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
        """Return the states that are predicted from, flat: at the given positions, at all, or a classifier's first."""
        return state.flatten(0, -2) if positions is None else state.flatten(0, -2)[positions]

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.final_norm(hidden) if self.config.final_norm else hidden

    def begin_step(self, seed: int) -> None:
        """Prepare a training step: draw its depth if depth is random. Ranks give equal seeds and draw equally."""
        # Evenly from 1 to 2 T - 1: the mean depth is T. A generator of its own leaves the global one alone.
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
        # Without the embedding: no loss is taken at step 0.
        states = self.pnn.states(inputs, attention_mask, token_type_ids, self._depth)[1:]
        read = [self.predicted_from(state, positions) for state in states]
        if self.config.step_weights == "ponder":
            # In float32: products of many probabilities, and their logarithms, need it under autocast.
            leave = torch.stack([self.exit_head(state).squeeze(-1).float() for state in read])
            weights = exit_probabilities(leave)
            losses = torch.stack([label_losses(self.predict(state), labels) for state in read])
            penalty = self.config.ponder_weight * divergence(weights, self.config.ponder_prior)
            return (weights * losses).sum(0) + penalty
        weighted = zip(step_weights(self.config.step_weights, len(read)), read, strict=True)
        # Steps of weight 0 cost no vocabulary head.
        return torch.stack([w * label_losses(self.predict(state), labels) for w, state in weighted if w]).sum(0)

    def uses(self, module: str, *, training: bool) -> int:
        """Return how often a token passes through a module with a name.

        A module of the trunk is used once in each step, a head once for each step that is predicted from, and an exit
        head in training only.
        """
        # Dots around both names: the module "pnn.refiner" itself matches, too, and no other name that only
        # contains it.
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
    """A PNN that predicts hidden tokens."""

    _tied_weights_keys = {"decoder.weight": "pnn.embeddings.tokens.weight"}

    def __init__(self, config: PnnConfig) -> None:
        super().__init__(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.decoder = value

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(hidden))


class PnnClassifier(PnnPredictor):
    """A PNN that predicts a class from the state of the first token."""

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
    """A PNN that predicts the class of a sentence or of a pair of sentences."""


class PnnForImageClassification(PnnClassifier):
    """A PNN that predicts the class of an image."""

    config_class = PnnVisionConfig
    main_input_name = "pixel_values"


# On import, transformers' automatic classes learn to build and load our networks.
AutoConfig.register("pnn", PnnConfig)
AutoConfig.register("pnn_vision", PnnVisionConfig)
AutoModel.register(PnnConfig, PnnModel)
AutoModelForMaskedLM.register(PnnConfig, PnnForMaskedLM)
AutoModelForSequenceClassification.register(PnnConfig, PnnForSequenceClassification)
AutoModelForImageClassification.register(PnnVisionConfig, PnnForImageClassification)
