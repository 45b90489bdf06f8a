"""The trunk of a Plastic Neural Network: from tokens or image patches to the state after each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as initial
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput

from raysweep.errors import ModelError
from raysweep.networks.pnn.config import PnnConfig
from raysweep.networks.pnn.parts import (
    Gate,
    HierarchicalRefiner,
    InProjection,
    Layer,
    Refiner,
    UpdateNorm,
    first_raw_temperature,
)


class Embeddings(nn.Module):
    """Embed tokens, positions and segments, or the patches of an image after a class token; normalise the sum."""

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
            # One position for each patch and one for the class token.
            count = math.prod(side // (config.patch_size or 1) for side in sides) + 1
        self.positions = nn.Embedding(count, width)
        if config.type_vocab_size:
            self.segments = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        # Tokens or patches: which of the two was built tells the kind of network.
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
    """What all PNN classes share with transformers: configuration, first weights, and which weights decay."""

    config_class: type[PnnConfig] = PnnConfig
    base_model_prefix = "pnn"
    _supports_sdpa = True
    _supports_attention_backend = True
    config: PnnConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw a module's first weights.

        `reference` is N(0, initializer_range), but queries, keys and values are Xavier-uniform as one fused matrix
        (pnn.md, section 1). `zero` starts the gain of a proposal's norm at 0, so that the first update is exactly 0.
        """
        # transformers calls this only for modules that hold parameters of their own. Its `initial` functions leave
        # weights alone that were loaded from a checkpoint.
        if isinstance(module, InProjection):
            # Before nn.Linear, its base class. The published code keeps queries, keys and values in one
            # (3 width, width) matrix, and Xavier's bound sqrt(6 / (in + out)) is that of the fused shape.
            bound = math.sqrt(6 / (4 * self.config.hidden_size))
            initial.uniform_(module.weight, -bound, bound)
            initial.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            initial.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                initial.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            # Zero in the norm and not in the matrix before it: a zero matrix would put the norm at variance 0,
            # where it scales gradients by up to 1 / sqrt(eps), about 316 (pnn.md, section 8).
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
        # By the module and not by the decoder: a decoder that is tied to the token embedding is the same
        # parameter, under the embedding's name.
        tables = [name for name, module in self.named_modules() if isinstance(module, nn.Embedding)]
        class_tokens = [name for name, _ in self.named_parameters() if name.endswith("class_token")]
        return {*(f"{name}.weight" for name in tables), *class_tokens}


class PnnModel(PnnPreTrainedModel):
    """The trunk: embeds its inputs and returns the state after each step."""

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

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
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
            steps: T; default: the configuration's.

        Raises:
            ModelError: fewer than 1 step, or more than a trunk of layers has.
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
        """Return the padding mask in the form that the attention interface takes; None if nothing is padded."""
        return create_bidirectional_mask(config=self.config, inputs_embeds=embedded, attention_mask=attention_mask)

    def step(self, step: int, state: torch.Tensor, embedded: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the state after step `step`, counted from 0."""
        module = self.refiner if self.config.shared else self.layers[step]
        read = self.read(step, state, embedded)
        return module(state, read, attention_mask=mask, head_mask=self.head_mask(step, state))

    def read(self, step: int, state: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Return the input of a step: the state, plus the embedding and the step's code where configured."""
        if self.config.input_injection:
            state = state + embedded
        if self.config.step_embedding:
            state = state + step_code(step, self.config.hidden_size).to(state)
        return state

    def head_mask(self, step: int, state: torch.Tensor) -> torch.Tensor | None:
        rows = self.config.step_head_mask
        # With more steps than rows, the last row serves all later steps.
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
    # Steps are counted from 1 there.
    angles = (step + 1) * rates
    # Sines and cosines interleave; an odd width drops the last cosine.
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten()[:width]
