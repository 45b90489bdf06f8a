"""Hide or show one neighbour of a masked token, all else equal, and measure how the token's loss changes."""

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
    """The effect of each neighbour on each target, arrays (pairs,)."""

    effect: Array
    """log p(target | neighbour in sight) - log p(target | neighbour hidden), nats."""
    targets: Ints
    """Number of the masked token, counted over all batches."""
    distances: Ints
    """Distance of the neighbour in tokens; positive to the right."""
    shown: Mask
    """True where the neighbour was masked and is shown; elsewhere it was in sight and is masked."""


@torch.no_grad()
def neighbour_effects(
    network: Any, batches: Sequence[Batch], mask_token: int, targets: Ints, distances: Sequence[int]
) -> NeighbourEffects:
    """Return the effect of each neighbour of each target, changed one at a time.

    Args:
        batches: with every labelled token masked.
        targets: numbers of labelled tokens, counted over all batches.
        distances: signed; neighbours beyond the ends of a sequence or in its padding are left out.
    """
    found: list[NeighbourEffects] = []
    before = 0
    for batch in batches:
        assert batch.labelled is not None
        # Targets are numbered over all batches: those of this one, and their numbers within it.
        mine = targets[(targets >= before) & (targets < before + len(batch.labelled))]
        found.append(_of_batch(network, batch, mask_token, mine - before, mine, np.asarray(distances)))
        before += len(batch.labelled)
    fields = ("effect", "targets", "distances", "shown")
    return NeighbourEffects(**{name: np.concatenate([getattr(one, name) for one in found]) for name in fields})


def _of_batch(
    network: Any, batch: Batch, mask_token: int, places: Ints, targets: Ints, distances: Ints
) -> NeighbourEffects:  # fmt: skip
    """Return the effects of the neighbours of one batch.

    Args:
        places, targets: (targets,), numbers among the labelled tokens of this batch, and among those of all batches.
    """
    assert batch.labelled is not None
    rows, columns = np.divmod(batch.labelled.cpu().numpy()[places], batch.labels.shape[1])
    # A column beyond the ends must not wrap around to a token of the other end: it is looked up at 0 and left out.
    neighbours = columns[:, None] + distances
    inside = (neighbours >= 0) & (neighbours < batch.labels.shape[1])
    there = inside & real_tokens(batch).cpu().numpy()[rows[:, None], np.where(inside, neighbours, 0)]
    target, which = np.nonzero(there)
    row, column, neighbour = rows[target], columns[target], neighbours[target, which]
    shown = (batch.labels.cpu().numpy() != NO_LABEL)[row, neighbour]
    # The unchanged rows stand in front: the loss of each target without any change is computed once, for all of its
    # neighbours. A masked neighbour is shown and a visible one is masked; the sign makes either the gain of log p.
    none = np.full(len(rows), -1)
    losses = _losses(network, batch, mask_token, np.r_[rows, row], np.r_[columns, column], np.r_[none, neighbour])
    rise = losses[len(rows) :] - losses[: len(rows)][target]
    return NeighbourEffects(
        effect=np.where(shown, -rise, rise), targets=targets[target], distances=distances[which], shown=shown
    )  # fmt: skip


def _losses(network: Any, batch: Batch, mask_token: int, rows: Ints, columns: Ints, changed: Ints) -> Array:
    """Return the loss at the column of each row with one neighbour changed, (rows,).

    Args:
        changed: (rows,), column of the neighbour, which is shown where it is labelled and masked elsewhere; -1 changes
            nothing.
    """
    parts = [
        _of_rows(network, batch, mask_token, rows[at : at + ROWS], columns[at : at + ROWS], changed[at : at + ROWS])
        for at in range(0, len(rows), ROWS)
    ]
    # A batch without targets has no parts, and concatenating nothing is an error.
    return np.concatenate([np.zeros(0), *parts])


def _of_rows(network: Any, batch: Batch, mask_token: int, rows: Ints, columns: Ints, changed: Ints) -> Array:
    """As `_losses`, for rows that run at once."""
    at = torch.from_numpy(rows).to(batch.inputs.device)
    inputs, labels = batch.inputs[at].clone(), batch.labels[at]
    [places] = np.nonzero(changed >= 0)
    there = torch.from_numpy(places).to(at), torch.from_numpy(changed[places]).to(at)
    true = labels[there]
    inputs[there] = torch.where(true != NO_LABEL, true, torch.full_like(true, mask_token))
    mask = None if batch.attention_mask is None else batch.attention_mask[at]
    types = None if batch.token_types is None else batch.token_types[at]
    here = torch.arange(len(at), device=at.device), torch.from_numpy(columns).to(at)
    # Only the state of the target is predicted from: logits of a whole vocabulary at every token would be waste.
    state = network.pnn.states(inputs, mask, types)[-1][here]
    losses: Array = label_losses(network.predict(state), labels[here]).double().cpu().numpy()
    return losses
