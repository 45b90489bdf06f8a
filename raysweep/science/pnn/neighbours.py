"""Hide or show one neighbour of a masked token, all else being the same, and see what becomes of the token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Array, Batch, Mask
from raysweep.networks.plasticity.objective import NO_LABEL, label_losses
from raysweep.science.pnn.activity import real_tokens
from raysweep.science.statistics.resampling import Ints

ROWS = 64
"""Sequences that run at once."""


@dataclass(frozen=True, kw_only=True)
class NeighbourEffects:
    """One entry for each pair of a target and a neighbour, (pairs,) each."""

    effect: Array
    """log p(target | neighbour in sight) - log p(target | neighbour hidden), nats."""
    targets: Ints
    """Which masked token the target is, counted over all batches."""
    distances: Ints
    """Of the neighbour; positive to the right."""
    shown: Mask
    """Whether the neighbour was hidden and is shown; elsewhere it was in sight and is hidden."""


@torch.no_grad()
def neighbour_effects(
    network: Any, batches: Sequence[Batch], mask_token: int, targets: Ints, distances: Sequence[int]
) -> NeighbourEffects:
    """Change each neighbour of each target, one at a time.

    Args:
        batches: with every labelled token hidden.
        targets: numbers of labelled tokens, counted over all batches.
        distances: signed; a neighbour beyond the ends of a sequence or in its padding is none.
    """
    found: list[NeighbourEffects] = []
    before = 0
    for batch in batches:
        assert batch.labelled is not None
        mine = targets[(targets >= before) & (targets < before + len(batch.labelled))]
        found.append(_of_batch(network, batch, mask_token, mine - before, mine, np.asarray(distances)))
        before += len(batch.labelled)
    fields = ("effect", "targets", "distances", "shown")
    return NeighbourEffects(**{name: np.concatenate([getattr(one, name) for one in found]) for name in fields})


def _of_batch(
    network: Any, batch: Batch, mask_token: int, places: Ints, targets: Ints, distances: Ints
) -> NeighbourEffects:  # fmt: skip
    """Args: places, targets: (targets,), numbers among the labelled tokens of this batch and of all."""
    assert batch.labelled is not None
    rows, columns = np.divmod(batch.labelled.cpu().numpy()[places], batch.labels.shape[1])
    neighbours = columns[:, None] + distances
    inside = (neighbours >= 0) & (neighbours < batch.labels.shape[1])
    there = inside & real_tokens(batch).cpu().numpy()[rows[:, None], np.where(inside, neighbours, 0)]
    target, which = np.nonzero(there)
    row, column, neighbour = rows[target], columns[target], neighbours[target, which]
    shown = (batch.labels.cpu().numpy() != NO_LABEL)[row, neighbour]
    # The unchanged rows stand in front: each target's loss without any change is a row of its own.
    none = np.full(len(rows), -1)
    losses = _losses(network, batch, mask_token, np.r_[rows, row], np.r_[columns, column], np.r_[none, neighbour])
    rise = losses[len(rows) :] - losses[: len(rows)][target]
    return NeighbourEffects(
        effect=np.where(shown, -rise, rise), targets=targets[target], distances=distances[which], shown=shown
    )  # fmt: skip


def _losses(network: Any, batch: Batch, mask_token: int, rows: Ints, columns: Ints, changed: Ints) -> Array:
    """Return the loss at each row's column with one neighbour changed, (rows,).

    Args:
        changed: column of the neighbour: shown where it is labelled, hidden elsewhere; -1: none is changed.
    """
    parts = [
        _of_rows(network, batch, mask_token, rows[at : at + ROWS], columns[at : at + ROWS], changed[at : at + ROWS])
        for at in range(0, len(rows), ROWS)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _of_rows(network: Any, batch: Batch, mask_token: int, rows: Ints, columns: Ints, changed: Ints) -> Array:
    at = torch.from_numpy(rows).to(batch.inputs.device)
    inputs, labels = batch.inputs[at].clone(), batch.labels[at]
    [places] = np.nonzero(changed >= 0)
    there = torch.from_numpy(places).to(at), torch.from_numpy(changed[places]).to(at)
    true = labels[there]
    inputs[there] = torch.where(true != NO_LABEL, true, torch.full_like(true, mask_token))
    mask = None if batch.attention_mask is None else batch.attention_mask[at]
    types = None if batch.token_types is None else batch.token_types[at]
    here = torch.arange(len(at), device=at.device), torch.from_numpy(columns).to(at)
    state = network.pnn.states(inputs, mask, types)[-1][here]
    losses: Array = label_losses(network.predict(state), labels[here]).double().cpu().numpy()
    return losses
