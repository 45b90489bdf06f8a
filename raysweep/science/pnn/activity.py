"""Measure how states move from step to step and how far gates are open, at every token that is no padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Array, Batch, Mask
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.science.pnn.interventions import has_gate, observed, step_states
from raysweep.science.statistics.resampling import Ints
from raysweep.science.statistics.similarity import FEWEST_TOKENS


@dataclass(frozen=True, kw_only=True)
class Activity:
    """States and gates of all tokens but padding: arrays (steps, tokens) unless said otherwise, in batch order."""

    state_norm: Array
    """(steps + 1, tokens): |h_t|; row 0 is that of the embedding."""
    update_norm: Array
    """|delta_t|, delta_t being h_t - h_{t-1}."""
    update_cosine: Array
    """(steps - 1, tokens): cosine of delta_t and delta_{t-1}."""
    participation: Array
    """Share of dimensions that take part in an update, in (0, 1]; see `participation`."""
    gate_mean: Array | None
    """Mean over dimensions; None where no gate depends on the input."""
    gate_square: Array | None
    """Mean square over dimensions."""
    gate_open: Array | None
    """Share of dimensions whose gate is above 0.5."""
    gate_variance: Array | None
    """(steps, width): variance across tokens of each dimension's gate."""
    masked: Mask
    """(tokens,): whether the token is masked, and so to be predicted."""
    sequences: Ints
    """(tokens,): number of the sequence that each token belongs to."""

    @property
    def relative_update(self) -> Array:
        """|delta_t| / |h_{t-1}|, (steps, tokens)."""
        return self.update_norm / self.state_norm[:-1]


@dataclass(frozen=True, kw_only=True)
class BatchStates:
    """The states and gates of one batch, its padding left out."""

    states: torch.Tensor
    """(steps + 1, tokens, width)"""
    gates: torch.Tensor | None
    """(steps, tokens, width); None where no gate depends on the input."""
    masked: Mask
    sequences: Ints
    """(tokens,) each."""


@torch.no_grad()
def batch_states(network: Any, batches: Sequence[Batch], steps: int | None = None) -> Iterator[BatchStates]:
    """Yield the states and gates of each batch; `steps` is T, the network's own unless given."""
    before = 0
    for batch in batches:
        states, gates = _run(network, batch, steps)
        real = real_tokens(batch)
        # Rows are numbered over all batches: sequences are the units of every test.
        rows = torch.nonzero(real)[:, 0].cpu().numpy() + before
        before += len(batch.labels)
        yield BatchStates(
            # fp64: |delta| is a difference of states, and norms of it are compared between networks.
            states=torch.stack([state[real] for state in states]).double(),
            gates=torch.stack([gate[real] for gate in gates]).double() if gates else None,
            masked=(batch.labels[real] != NO_LABEL).cpu().numpy(),
            sequences=rows,
        )


def states_by_sequence(network: Any, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Return the states of each sequence, (steps + 1, tokens, width) in fp64, padding left out.

    Sequences of fewer than `FEWEST_TOKENS` tokens are left out: their alignments do not exist.
    """
    found = []
    # Sequences are found by their numbers, as padding leaves rows of unequal length.
    for batch in batch_states(network, batches):
        for sequence in np.unique(batch.sequences):
            members = torch.from_numpy(batch.sequences == sequence)
            if int(members.sum()) >= FEWEST_TOKENS:
                found.append(batch.states[:, members.to(batch.states.device)].cpu())
    return found


def _run(network: Any, batch: Batch, steps: int | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the states (batch, tokens, width) and the gates of one batch, the latter empty without such a gate."""
    gates: list[torch.Tensor] = []

    def keep(step: int, gate: torch.Tensor) -> None:
        gates.append(gate)

    with observed(network, "gate", keep) if has_gate(network) else nullcontext():
        return step_states(network, batch, steps), gates


def real_tokens(batch: Batch) -> torch.Tensor:
    """Return which tokens are no padding, (batch, tokens)."""
    if batch.attention_mask is None:
        return torch.ones_like(batch.labels, dtype=torch.bool)
    return batch.attention_mask.bool()


def activity(network: Any, batches: Sequence[Batch], steps: int | None = None) -> Activity:
    """Measure the states and gates of a network on batches; `steps` is T, the network's own unless given."""
    parts: dict[str, list[Any]] = {}
    moments = _GateMoments()
    for batch in batch_states(network, batches, steps):
        for name, values in _measured(batch).items():
            parts.setdefault(name, []).append(values.cpu().numpy())
        for name, places in (("masked", batch.masked), ("sequences", batch.sequences)):
            parts.setdefault(name, []).append(places)
        if batch.gates is not None:
            moments.add(batch.gates)
    whole: dict[str, Any] = {name: np.concatenate(arrays, -1) for name, arrays in parts.items()}
    # A network without a gate that depends on the input has no such figures.
    for name in ("gate_mean", "gate_square", "gate_open"):
        whole.setdefault(name, None)
    return Activity(**whole, gate_variance=moments.variance())


def _measured(batch: BatchStates) -> dict[str, torch.Tensor]:
    """Return the arrays of `Activity` for one batch, by their names."""
    updates = batch.states.diff(dim=0)
    measured = {
        "state_norm": batch.states.norm(dim=-1),
        "update_norm": updates.norm(dim=-1),
        # Of each update with the one before it: the first update has none.
        "update_cosine": torch.cosine_similarity(updates[1:], updates[:-1], dim=-1),
        "participation": participation(updates),
    }
    if batch.gates is not None:
        # Gates are reduced over dimensions at once: whole ones, (steps, tokens, width), are too large to be kept.
        measured["gate_mean"] = batch.gates.mean(-1)
        measured["gate_square"] = batch.gates.square().mean(-1)
        measured["gate_open"] = (batch.gates > 0.5).double().mean(-1)
    return measured


def participation(updates: torch.Tensor) -> torch.Tensor:
    """Return the participation ratio of updates (..., width) as a share of the width, (...); 0 for an update of zeros.

    (sum |delta_i|)^2 / (width sum delta_i^2): 1 where all entries are equally large, 1 / width where one is not 0.
    """
    square = updates.square().sum(-1)
    ratio = updates.abs().sum(-1).square() / (updates.shape[-1] * square)
    # An update of zeros is 0 / 0: no dimension takes part in it.
    return torch.where(square > 0, ratio, torch.zeros_like(ratio))


class _GateMoments:
    """Sums over tokens that give the variance of each dimension's gate across tokens.

    Batches pass once, and the gates of all of them are too large to be kept.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: torch.Tensor | None = None

    def add(self, gates: torch.Tensor) -> None:
        # `variance` subtracts two sums. Gates lie near 0.5, so centred there the sums are small, and little is lost.
        centred = gates - 0.5
        sums = torch.stack([centred.sum(1), centred.square().sum(1)])
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += gates.shape[1]

    def variance(self) -> Array | None:
        """Return the variance of each dimension at each step, (steps, width); None if no gates were added."""
        if self.sums is None:
            return None
        mean, square = self.sums.cpu().numpy() / self.count
        # Rounding can leave a gate that never varies a little below 0.
        return np.maximum(square - mean**2, 0.0)
