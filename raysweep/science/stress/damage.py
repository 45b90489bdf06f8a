"""Targeted damage: the heads that matter most go, and the network learns on.

Beside that arm stand as many heads drawn at random, in every layer as many as the targeted arm removes there, and the
heads that matter least. Each arm starts from the same network and learns the same windows in the same order; recovery
is measured against a network that lost nothing and learned as long (`records.recovery`).
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
    """One way of losing heads; losses are held-out, on A, nats a prediction."""

    arm: str
    """`dense` loses none; `highest`, `random 1`, ..., `lowest`."""
    heads: list[Slot]
    """Those that were removed, by original position."""
    damaged: float | None = None
    """The loss at once; None where it is no number."""
    harm: Interval | None = None
    """By how much it is above that of the whole network, paired."""
    learned: float | None = None
    """The loss after learning; None where that diverged."""
    recovery: float | None = None
    error: str | None = None


def damage(subject: StressSubject) -> Iterator[Arm]:
    """Yield the dense arm, then the damaged ones; one that diverges says so, and the others go on."""
    whole = subject.losses(subject.state(), subject.a)
    dense = _arm(subject, DENSE, [], whole, None)
    yield dense
    for name, heads in choices(subject, subject.scores(subject.a)).items():
        yield _arm(subject, name, heads, whole, dense.learned)


def choices(subject: StressSubject, scores: Array) -> dict[str, list[Slot]]:
    """Return the heads that each damaged arm loses, by their scores [layers][heads]."""
    highest = subject.lowest(-scores)
    draws = {
        f"random {number}": _drawn(subject, highest, subject.generator("draw", number))
        for number in range(1, subject.question.draws + 1)
    }
    return {"highest": highest, **draws, "lowest": subject.lowest(scores)}


def _drawn(subject: StressSubject, like: Sequence[Slot], generator: np.random.Generator) -> list[Slot]:
    """Return present heads drawn at random, in every layer as many as there are in `like`."""
    drawn: list[Slot] = []
    for layer, count in sorted(Counter(layer for layer, _ in like).items()):
        present = np.flatnonzero(subject.head_map.present[layer])
        drawn += [(layer, int(head)) for head in np.sort(generator.choice(present, count, replace=False))]
    return drawn


def _arm(subject: StressSubject, name: str, heads: Sequence[Slot], whole: Losses, dense: float | None) -> Arm:
    state = subject.state(without=heads)
    at_once: dict[str, Any] = {"arm": name, "heads": list(heads)}
    try:
        damaged = subject.losses(state, subject.a)
        at_once |= {"damaged": damaged.mean, "harm": damaged.above(whole)}
        subject.train(state, subject.a.train, "damage")
        learned = subject.losses(state, subject.a).mean
    except DivergedError as error:
        return Arm(**at_once, error=str(error))
    won_back = None if dense is None else recovery(pruned=damaged.mean, learned=learned, dense=dense)
    return Arm(**at_once, learned=learned, recovery=won_back)
