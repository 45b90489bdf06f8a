"""A transformers network with a gate on every head: exact masking, no change of shape.

A gate multiplies each head's output at the input of the attention output projection. That is exact for every
attention backend and family: a gate of 0 equals physical removal, output bias untouched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raysweep.contracts import AttentionSite, Slot
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.objective import flat_labels, label_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeadGate:
    """The gates of one layer's heads: `values` is of shape (heads,), or (batch, 1, heads) while probing."""

    def __init__(self, site: AttentionSite) -> None:
        self.site = site
        self.values: torch.Tensor | None = None
        """None: all gates are open."""
        # The input of the output projection is the one place where heads still stand side by side in every
        # family and attention backend: after attention, before they are summed.
        site.projection.register_forward_pre_hook(self._multiply)

    def _multiply(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        # Nothing is multiplied then: the network is bit for bit the one of transformers.
        if self.values is None:
            return None
        # Not scaled up for closed heads, as dropout would do: a closed gate must equal a removed head.
        heads = inputs[0].unflatten(-1, (self.site.num_heads, self.site.head_dim))
        gated = heads * self.values.unsqueeze(-1).to(heads.dtype)
        return (gated.flatten(-2), *inputs[1:])


def output_embeddings(network: Any) -> nn.Module | None:
    """Return the layer that predicts tokens of the vocabulary; None in a classifier."""
    found: nn.Module | None = network.get_output_embeddings()
    return found


class PlasticModel(nn.Module):
    """A transformer whose heads can be absent, present or fading in.

    Args:
        network: a transformers model with logits.
        sites: one per layer, from its family.
    """

    def __init__(self, network: PreTrainedModel, sites: Sequence[AttentionSite]) -> None:
        super().__init__()
        self.network: PreTrainedModel = network
        # Gates are neither parameters nor buffers: weights, checkpoints and DDP know nothing of them, so that
        # heads come and go without wrapping the model anew.
        self.sites = list(sites)
        self.gates = [HeadGate(site) for site in sites]
        self._labelled: torch.Tensor | None = None
        self.decoder: Any = output_embeddings(network)
        if self.decoder is not None:
            # Vocabulary logits are the largest tensor of a forward pass. The hook keeps only positions with a
            # label, before the product.
            self.decoder.register_forward_pre_hook(self._pick_labelled)

    def forward(
        self,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_types: torch.Tensor | None = None,
        labelled: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits: (batch, tokens, vocabulary), (labelled, vocabulary), or (batch, classes) from a classifier.

        Given labels, return the training loss of each: of the shape of the labels, or (labelled,).

        Args:
            inputs: token ids (batch, tokens), or pixels (batch, channels, height, width).
            attention_mask: (batch, tokens), 0 at padding.
            token_types: (batch, tokens), the segment of each token.
            labelled: flat positions; vocabulary logits are computed at these alone.
        """
        options = {"attention_mask": attention_mask, "token_type_ids": token_types}
        # Only arguments that are given: not every network takes segments, and some refuse an unknown keyword.
        given = {name: tensor for name, tensor in options.items() if tensor is not None}
        if labels is None:
            return self._logits(inputs, labelled, given)
        wanted = flat_labels(labels, labelled)
        # Losses are computed inside `forward` so that training goes through DDP's forward, which prepares the
        # gradient all-reduce. PNN adds up the losses of several steps there.
        if hasattr(self.network, "training_losses"):
            losses = self.network.training_losses(inputs, wanted, positions=labelled, **given)
        else:
            losses = label_losses(self._logits(inputs, labelled, given).flatten(0, -2), wanted)
        return losses.view_as(labels) if labelled is None else losses

    def _logits(
        self, inputs: torch.Tensor, labelled: torch.Tensor | None, given: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        # Training and measuring never generate: a cache would only hold keys and values in memory.
        cache = {"use_cache": False} if hasattr(self.network.config, "use_cache") else {}
        self._labelled = labelled
        try:
            return self.network(**{self.network.main_input_name: inputs}, **given, **cache).logits
        finally:
            self._labelled = None

    def begin_step(self, seed: int) -> None:
        """Let a network make its random draws for a training step (PNN: its depth); the same on every rank."""
        if hasattr(self.network, "begin_step"):
            self.network.begin_step(seed)

    def _pick_labelled(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._labelled is None:
            return None
        return (inputs[0].flatten(0, 1)[self._labelled], *inputs[1:])

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)"""
        return len(self.sites), self.sites[0].num_heads

    @property
    def initializer_range(self) -> float:
        config = self.network.config
        names = ("initializer_range", "init_std")  # OPT calls it init_std
        return next((float(getattr(config, name)) for name in names if hasattr(config, name)), 0.02)

    def set_gates(self, head_map: HeadMap, ajar: Mapping[Slot, float] | None = None) -> None:
        """Close the gates of absent heads and open the others; `ajar` gives partly open gates their values."""
        device = next(self.parameters()).device
        values = torch.from_numpy(head_map.present).to(device=device, dtype=torch.float32)
        for slot, value in (ajar or {}).items():
            values[slot] = value
        for gate, row in zip(self.gates, values, strict=True):
            # Fully open layers skip the multiplication: it would change no value, but cost time.
            gate.values = None if bool((row == 1).all()) else row

    @contextmanager
    def replaced_gates(self, values: Sequence[torch.Tensor]) -> Iterator[None]:
        """Use other gates inside the block, one tensor for each layer."""
        before = [gate.values for gate in self.gates]
        for gate, value in zip(self.gates, values, strict=True):
            gate.values = value
        try:
            yield
        finally:
            for gate, earlier in zip(self.gates, before, strict=True):
                gate.values = earlier

    @contextmanager
    def masked(self, head_map: HeadMap) -> Iterator[None]:
        """Open the gates of present heads inside the block, and close those of absent heads."""
        device = next(self.parameters()).device
        with self.replaced_gates(list(torch.from_numpy(head_map.present).to(device, torch.float32))):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Use evaluation mode inside the block."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Use evaluation mode inside the block, without gradients for parameters: those of gates and outputs remain."""
        # Only parameters that are trainable now are restored: a frozen one must stay frozen.
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        with self.evaluating():
            for parameter in trainable:
                parameter.requires_grad_(False)
            try:
                yield
            finally:
                for parameter in trainable:
                    parameter.requires_grad_(True)
