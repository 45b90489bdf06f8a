"""Record what a network shows of each batch: logits, hidden states and attention, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from raysweep.contracts import Batch
from raysweep.errors import ModelError
from raysweep.networks.plasticity.attention_divergence import Attended
from raysweep.networks.plasticity.attention_statistics import watched_attention
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import NO_LABEL, label_losses, predictions


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of one network for a batch."""

    logits: torch.Tensor
    """(predictions, vocabulary), fp64."""
    losses: torch.Tensor
    """(predictions,), nats."""
    states: Sequence[torch.Tensor]
    """(batch, tokens, width) after the embedding and after each layer."""
    attended: Sequence[Attended]
    """Queries and keys of each layer."""


class NetworkObserver:
    """Run batches through a network and return what it shows of each."""

    def __init__(self, model: PlasticModel) -> None:
        self.model = model
        self.states: Sequence[torch.Tensor] = ()
        self.attended: dict[int, Attended] = {}

    def __call__(self, batch: Batch) -> Outputs:
        """Run a batch.

        Raises:
            ModelError: the network does not show the states and the attention of every layer once.
        """
        # Emptied first: a network that shows nothing of this batch must not leave us with the last one's.
        self.states, self.attended = (), {}
        logits, labels = predictions(self.model, batch)
        layers = len(self.model.sites)
        # A network that applies one layer several times has one site, and shows several states for it.
        if len(self.states) != layers + 1 or len(self.attended) != layers:
            kind = self.model.network.config.model_type
            raise ModelError(
                f"a network of {kind!r} does not show the hidden states and the attention of its layers, each once. "
                "Compare networks of pnn with 'raysweep analyze pnn MODEL --compare OTHER'."
            )
        labelled = labels != NO_LABEL
        return Outputs(
            logits=logits[labelled].double(),
            losses=label_losses(logits[labelled], labels[labelled]),
            states=self.states,
            attended=[self.attended[layer] for layer in range(layers)],
        )

    def keep_attention(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float,
        causal: bool,
    ) -> None:  # fmt: skip
        """Keep what one layer attends with, for `watched_attention`."""
        # Queries and keys are kept, not maps: fused attention never computes a map.
        self.attended[layer] = Attended(query=query, key=key, mask=mask, scaling=scaling, causal=causal)

    def keep_states(self, network: Any, inputs: Any, output: Any) -> None:
        """Keep the hidden states of a forward pass, as a forward hook."""
        self.states = getattr(output, "hidden_states", None) or ()


@contextmanager
def observed(model: PlasticModel, head_map: HeadMap) -> Iterator[NetworkObserver]:
    """Watch a network for a while, in evaluation mode and fp32 at least, with the gates of a head map."""
    # Half precision is raised to fp32, so that two precisions of the same weights are not two functions.
    network: Any = model.eval().to(torch.promote_types(next(model.parameters()).dtype, torch.float32)).network
    model.set_gates(head_map)
    observer = NetworkObserver(model)
    before = network.config.output_hidden_states
    network.config.output_hidden_states = True
    handle = network.register_forward_hook(observer.keep_states)
    watchers = {site.attention: partial(observer.keep_attention, site.layer) for site in model.sites}
    try:
        with watched_attention(network, watchers):
            yield observer
    finally:
        handle.remove()
        network.config.output_hidden_states = before
