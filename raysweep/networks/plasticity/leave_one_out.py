"""Measure the true contribution of each head: the loss without it minus the loss with it, on the same windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import torch

from raysweep.contracts import Array, Batch
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import example_losses, losses_of

RESAMPLES = 2_000
Progress = Callable[[int, int], None]


@torch.no_grad()
def contributions(
    model: PlasticModel, batches: Sequence[Batch], head_map: HeadMap, progress: Progress = lambda done, total: None
) -> Array:
    """Return Delta_h = L(without h) - L of each window in nats, (windows, layers, heads) (heads.md 2.4).

    Runs one forward pass for each present head and batch, dropout off. An absent head contributes 0. Other heads partly
    make up for a missing one (self-repair), so this is a lower bound of what a head does.

    Args:
        progress: called after each of these passes with the number done and the total.
    """
    steps = count(1)
    total = len(batches) * head_map.active

    def pass_done() -> None:
        progress(next(steps), total)

    with model.evaluating():
        found = [_of_batch(model, batch, head_map, pass_done) for batch in batches]
    return np.concatenate(found) if found else np.zeros((0, *model.shape))


def _of_batch(model: PlasticModel, batch: Batch, head_map: HeadMap, pass_done: Callable[[], None]) -> Array:
    # Paired: both losses are of the same windows, so the spread between windows cancels in the difference.
    losses = _losses(model, batch, head_map)
    found = np.zeros((len(losses), *model.shape))
    for layer, head in np.argwhere(head_map.present):
        found[:, layer, head] = _losses(model, batch, head_map.without([(layer, head)])) - losses
        pass_done()
    return found


def _losses(model: PlasticModel, batch: Batch, head_map: HeadMap) -> Array:
    with model.masked(head_map):
        return example_losses(losses_of(model, batch), batch.labels).double().cpu().numpy()


def bootstrap_interval(values: Array, *, level: float = 0.95, seed: int = 0) -> tuple[Array, Array]:
    """Return the bounds of the percentile bootstrap interval of the mean over windows, [layers][heads] each.

    Every resample takes the same windows for all heads, and each value is a paired difference on one window (Efron and
    Tibshirani 1993, chapter 13). With a single window, both bounds are its value.

    Args:
        values: (windows, layers, heads).
    """
    generator = np.random.default_rng(seed)
    # A resample is the number of times each window is drawn: means of all resamples are then one matrix
    # product.
    counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    means = np.tensordot(counts / len(values), values, axes=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
