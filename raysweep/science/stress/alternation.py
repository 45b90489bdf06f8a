"""Tasks by turns: what a network forgets of one text while it learns the other, and how much of it a turn brings back.

One network is trained on A, B, A, B, ... without a restart. What it forgets in a turn is the rise of the held-out loss
of the task that does not have the turn; what it learns again is the share of the last rise that its own turn takes
away. A rise is one only if its 95% paired interval over windows lies above 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raysweep.errors import DivergedError
from raysweep.science.statistics.finding import Interval
from raysweep.science.stress.subject import Losses, StressSubject


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The network after a turn of training; turn 0 is how it began."""

    turn: int
    trained: str | None
    """`a` or `b`"""
    loss_a: float | None = None
    loss_b: float | None = None
    """Held-out, nats a prediction; None after training that diverged."""
    forgotten: Interval | None = None
    """By how much the loss of the other task rose; below 0, it gained from this turn."""
    relearned: float | None = None
    """Share of what this task had forgotten in the turn before that it took back; above 1 it went beyond, below 0 it
    lost more. None where nothing had been forgotten that stands out of the noise."""
    error: str | None = None


def alternation(subject: StressSubject) -> Iterator[Turn]:
    """Yield the network as it begins and after each turn; one that diverges is the last."""
    corpora, state = {"a": subject.a, "b": subject.b}, subject.state()
    before = {name: subject.losses(state, corpus) for name, corpus in corpora.items()}
    yield Turn(turn=0, trained=None, loss_a=before["a"].mean, loss_b=before["b"].mean)
    risen: Interval | None = None
    for turn in range(1, subject.question.rounds + 1):
        own, other = ("a", "b") if turn % 2 else ("b", "a")
        try:
            subject.train(state, corpora[own].train, f"turn {turn}")
            after = {name: subject.losses(state, corpus) for name, corpus in corpora.items()}
        except DivergedError as error:
            yield Turn(turn=turn, trained=own, error=str(error))
            return
        relearned = None if risen is None else share_relearned(risen, before[own], after[own])
        risen = after[other].above(before[other])
        yield Turn(
            turn=turn, trained=own, loss_a=after["a"].mean, loss_b=after["b"].mean, forgotten=risen,
            relearned=relearned,
        )  # fmt: skip
        before = after


def share_relearned(forgotten: Interval, before: Losses, after: Losses) -> float | None:
    """Return which share of a rise of the loss was taken back, not clamped; None where the rise is within the noise."""
    return (before.mean - after.mean) / forgotten.mean if forgotten.low > 0 else None
