"""Tiny Plastic Neural Networks with held-out text, for tests of analyses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from raysweep.contracts import Batch, Facts
from raysweep.networks.pnn.config import PnnConfig
from raysweep.networks.pnn.network import PnnForMaskedLM
from raysweep.science.pnn.subject import PnnSubject, frequency_of, masked_batches, untrained_twin
from raysweep.trial.runtime import Runtime

VOCABULARY, LENGTH, WIDTH = 41, 14, 15
FACTS = Facts(vocab_size=VOCABULARY, mask_token=40, pad_token=39, special_tokens=(39, 40))


def tiny_pnn(seed: int = 0, scale: float = 0.3, **options: Any) -> Any:
    """Return a network in fp64 whose every parameter is random and clearly non-zero."""
    shape: dict[str, Any] = {
        "hidden_size": WIDTH, "num_attention_heads": 3, "intermediate_size": 22, "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH, "block_widths": (7, 9), "num_steps": 3,
    }  # fmt: skip
    network = PnnForMaskedLM(PnnConfig(**(shape | options))).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.copy_(parameter if "raw_temperature" in name else drawn + ("norm.weight" in name))
    return network


def rows_of(seed: int, count: int) -> Any:
    """Return rows of tokens (count, LENGTH); low ids are frequent."""
    drawn = np.random.default_rng(seed).geometric(0.1, size=(count, LENGTH))
    return np.minimum(drawn - 1, VOCABULARY - 3).astype(np.int64)


def tiny_subject(network: Any = None, *, sequences: int = 10, seed: int = 0, **fields: Any) -> PnnSubject:
    """Return a subject on random text; `fields` replace what it is made of."""
    network = tiny_pnn() if network is None else network
    made: dict[str, Any] = {
        "network": network,
        "untrained": untrained_twin(network, seed=1),
        "batches": masked_batches(rows_of(1, sequences), FACTS, Runtime(device=torch.device("cpu"))),
        "train": rows_of(2, 200),
        "frequency": frequency_of(rows_of(2, 200), VOCABULARY),
        "facts": FACTS,
        "seed": seed,
    }
    return PnnSubject(**(made | fields))


def half_right(subject: PnnSubject) -> PnnSubject:
    """Return the subject with every second label being what its network predicts."""
    batches = []
    for batch in subject.batches:
        assert batch.labelled is not None
        labels = batch.labels.flatten().clone()
        with torch.no_grad():
            predicted = subject.network(batch.inputs).logits.flatten(0, 1).argmax(-1)
        labels[batch.labelled[::2]] = predicted[batch.labelled[::2]]
        batches.append(dataclasses.replace(batch, labels=labels.view_as(batch.labels)))
    return dataclasses.replace(subject, batches=batches)


class Planted(nn.Module):
    """In place of a network: states that are written down, one tensor (steps + 1, rows, LENGTH, width) for all rows.

    What is predicted from a state are its first entries, as logits.
    """

    def __init__(self, states: torch.Tensor, batches: Sequence[Batch]) -> None:
        super().__init__()
        self.config = tiny_pnn(num_steps=len(states) - 1, gate="none").config
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.pnn = self
        ends = np.cumsum([len(batch.inputs) for batch in batches])[:-1]
        parts = torch.tensor_split(states.double(), torch.from_numpy(ends), dim=1)
        self.by_inputs = {batch.inputs.numpy().tobytes(): part for batch, part in zip(batches, parts, strict=True)}

    def states(self, inputs: torch.Tensor, *_: Any) -> list[torch.Tensor]:
        return list(self.by_inputs[inputs.numpy().tobytes()])

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[..., :VOCABULARY]


def planted_subject(states: Callable[[PnnSubject], torch.Tensor], sequences: int = 30) -> PnnSubject:
    """Return a subject whose network has the states that are made for it."""
    subject = tiny_subject(sequences=sequences)
    return dataclasses.replace(subject, network=Planted(states(subject), subject.batches))
