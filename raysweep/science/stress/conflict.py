"""Conflict pruning: how far the head rankings of two texts agree, and what pruning for one costs the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.contracts import Array, Mask, Slot
from raysweep.errors import DivergedError
from raysweep.networks.plasticity.ranking import agreement, average_ranks
from raysweep.science.statistics.finding import Interval
from raysweep.science.stress.subject import Losses, StressSubject


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The network without the lowest heads of one ranking; nothing is trained afterwards."""

    ranked_for: str
    """`none`: no head is removed; `a`, `b`, or `both`: by the sum of a head's two ranks."""
    heads: list[Slot]
    loss_a: float | None = None
    loss_b: float | None = None
    """Held-out losses, nats a prediction; None where a loss is not finite."""
    harm_a: Interval | None = None
    harm_b: Interval | None = None
    """Losses minus those of the whole network, paired."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Agreement of the rankings for both texts, and the effect of pruning by each."""

    agreement: dict[str, float | None]
    """Spearman's correlation of the two rankings: `global`, and `layer_centred`; see `ranking.agreement`."""
    conflicting: list[Slot]
    """Heads among the lowest for A that are not among the lowest for B, sorted."""
    count: int
    """Number of heads that each ranking removes."""
    pruned: list[Pruned]


def conflict(subject: StressSubject) -> Conflict:
    """Score heads on both texts, prune by each ranking, and measure on both.

    Raises:
        DivergedError: the loss of the whole network is not finite.
    """
    present = subject.head_map.present
    scores = {"a": subject.scores(subject.a), "b": subject.scores(subject.b)}
    scores["both"] = summed_ranks(scores["a"], scores["b"], present)
    lowest = {name: subject.lowest(array) for name, array in scores.items()}
    # `none` is measured among the pruned networks, too: its harm must be exactly 0.
    state = subject.state()
    whole = (subject.losses(state, subject.a), subject.losses(state, subject.b))
    return Conflict(
        agreement=agreement(scores["a"], scores["b"], present),
        # Heads that A could do without and B could not.
        conflicting=sorted(set(lowest["a"]) - set(lowest["b"])),
        count=subject.count,
        pruned=[_pruned(subject, name, heads, whole) for name, heads in {"none": [], **lowest}.items()],
    )


def summed_ranks(one: Array, other: Array, present: Mask) -> Array:
    """Return the sum of each present head's ranks by two scores [layers][heads]; 0 for absent heads."""
    # Ranks, not scores: the two texts have gradients of different size, and the larger ones would decide alone. Equal
    # scores share their mean rank, so that ties are not broken by position.
    total = np.zeros(present.shape)
    total[present] = average_ranks(one[present]) + average_ranks(other[present])
    return total


def _pruned(subject: StressSubject, name: str, heads: Sequence[Slot], whole: tuple[Losses, Losses]) -> Pruned:
    """Measure the network without some heads on both texts."""
    state = subject.state(without=heads)
    try:
        a, b = subject.losses(state, subject.a), subject.losses(state, subject.b)
    except DivergedError as error:
        return Pruned(ranked_for=name, heads=list(heads), error=str(error))
    return Pruned(
        ranked_for=name, heads=list(heads), loss_a=a.mean, loss_b=b.mean, harm_a=a.above(whole[0]),
        harm_b=b.above(whole[1]),
    )  # fmt: skip
