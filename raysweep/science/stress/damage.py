"""Targeted damage: remove the heads that matter most, train on, and measure the recovery.

Other arms remove as many heads at random, or the heads that matter least. At random as many are drawn in every layer as
the targeted arm removes there, so that these arms differ from it in their heads and not in their layers. Each arm
starts from the same network and learns the same windows in the same order. Recovery is relative to a dense arm, which
lost nothing and learned as long (`records.schema.recovery`): further training alone lowers the loss, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysweep.contracts import Array, Slot
from raysweep.errors import DivergedError
from raysweep.records.schema import recovery
from raysweep.science.statistics.finding import Interval
from raysweep.science.stress.subject import Losses, StressSubject

DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A choice of heads to remove, and its effect; losses are held-out, on A, nats a prediction."""

    arm: str
    """`dense`, which loses none, `highest`, `random 1`, ..., `lowest`."""
    heads: list[Slot]
    """Removed heads, by original position."""
    damaged: float | None = None
    """Loss after the removal; None where it is not finite."""
    harm: Interval | None = None
    """That loss minus the one of the whole network, paired."""
    learned: float | None = None
    """Loss after training on; None where that diverged."""
    recovery: float | None = None
    """(damaged - learned) / (damaged - dense), `dense` being the dense arm after training; not clamped. None for the
    dense arm, and where dense is no better than damaged."""
    error: str | None = None


def damage(subject: StressSubject) -> Iterator[Arm]:
    """Yield the dense arm, then the damaged ones; an arm that diverges holds the error, and the others go on."""
    # The dense arm comes first: the recovery of all others is relative to it.
    whole = subject.losses(subject.state(), subject.a)
    dense = _arm(subject, DENSE, [], whole, None)
    yield dense
    for name, heads in choices(subject, subject.scores(subject.a)).items():
        yield _arm(subject, name, heads, whole, dense.learned)


def choices(subject: StressSubject, scores: Array) -> dict[str, list[Slot]]:
    """Return the heads that each damaged arm removes, by their scores [layers][heads]."""
    # Negated scores make the heads that matter most the lowest ones, with the same bound of one head in each layer.
    highest = subject.lowest(-scores)
    draws = {
        f"random {number}": _drawn(subject, highest, subject.generator("draw", number))
        for number in range(1, subject.question.draws + 1)
    }
    return {"highest": highest, **draws, "lowest": subject.lowest(scores)}


def _drawn(subject: StressSubject, like: Sequence[Slot], generator: np.random.Generator) -> list[Slot]:
    """Return present heads drawn at random, in every layer as many as `like` holds there."""
    drawn: list[Slot] = []
    for layer, count in sorted(Counter(layer for layer, _ in like).items()):
        present = np.flatnonzero(subject.head_map.present[layer])
        drawn += [(layer, int(head)) for head in np.sort(generator.choice(present, count, replace=False))]
    return drawn


def _arm(subject: StressSubject, name: str, heads: Sequence[Slot], whole: Losses, dense: float | None) -> Arm:
    """Remove heads, measure, train on and measure again.

    Args:
        whole: losses of the whole network.
        dense: loss of the dense arm after training; None for that arm itself, or if it diverged.
    """
    # What was measured before an arm diverged is kept with its error.
    state = subject.state(without=heads)
    at_once: dict[str, Any] = {"arm": name, "heads": list(heads)}
    try:
        damaged = subject.losses(state, subject.a)
        at_once |= {"damaged": damaged.mean, "harm": damaged.above(whole)}
        # The purpose, and so the order of the windows, is the same for all arms.
        subject.train(state, subject.a.train, "damage")
        learned = subject.losses(state, subject.a).mean
    except DivergedError as error:
        return Arm(**at_once, error=str(error))
    won_back = None if dense is None else recovery(pruned=damaged.mean, learned=learned, dense=dense)
    return Arm(**at_once, learned=learned, recovery=won_back)
