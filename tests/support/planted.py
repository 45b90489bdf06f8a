"""Choices of heads that bring about what a test is about: under some phase key random ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from raysweep.contracts import HeadStatistics, Slot


def oldest_and_newest() -> Callable[..., list[Slot]]:
    """Return how a Grower grows half of the slots that went first and half of those that went last."""
    gone: list[Slot] = []

    def grow(self: Any, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        gone.extend(slot for slot in absent_slots(statistics) if slot not in gone)
        chosen = [*gone[: count // 2], *gone[count // 2 - count :]]
        gone[:] = [slot for slot in gone if slot not in chosen]
        return chosen

    return grow


def one_grown_each_time() -> Callable[..., np.ndarray]:
    """Return how a Pruner takes one of the heads that were grown, and for the rest heads that were always there."""
    gone: set[Slot] = set()

    def prune(self: Any, statistics: HeadStatistics, generator: np.random.Generator) -> np.ndarray:
        grown = sorted(gone - set(absent_slots(statistics)))
        gone.update(absent_slots(statistics))
        scores = generator.random(statistics.present.shape)
        for rank, slot in enumerate(grown):
            scores[slot] = 2.0 if rank else -1.0  # the lowest goes
        return scores

    return prune


def absent_slots(statistics: HeadStatistics) -> list[Slot]:
    return [(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)]
