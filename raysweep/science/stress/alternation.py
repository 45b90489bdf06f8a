"""Task alternation: how much a network forgets of one text while it learns the other, and how much it relearns.

One network is trained on A, B, A, B, ... without a restart. Forgotten in a turn is the rise of the held-out loss of the
text that is not trained. Relearned in the next turn is the share of that rise which training on the text takes away. A
rise counts only if its 95% paired interval over windows lies above 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raysweep.errors import DivergedError
from raysweep.science.statistics.finding import Interval
from raysweep.science.stress.subject import Losses, StressSubject


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Losses of the network after a turn of training; turn 0 is before the first."""

    turn: int
    trained: str | None
    """The text of this turn, `a` or `b`."""
    loss_a: float | None = None
    loss_b: float | None = None
    """Held-out losses, nats a prediction; None after training that diverged."""
    forgotten: Interval | None = None
    """Rise of the loss of the other text in this turn; below 0, it gained."""
    relearned: float | None = None
    """Share of the rise of this text's loss in the turn before that this turn took back: above 1 the loss fell below
    where it had been, below 0 it rose further. None if that rise was within the noise."""
    error: str | None = None


def alternation(subject: StressSubject) -> Iterator[Turn]:
    """Yield the losses before the first turn and after each turn; a turn that diverges is the last."""
    corpora, state = {"a": subject.a, "b": subject.b}, subject.state()
    before = {name: subject.losses(state, corpus) for name, corpus in corpora.items()}
    yield Turn(turn=0, trained=None, loss_a=before["a"].mean, loss_b=before["b"].mean)
    risen: Interval | None = None
    for turn in range(1, subject.question.rounds + 1):
        own, other = ("a", "b") if turn % 2 else ("b", "a")
        try:
            subject.train(state, corpora[own].train, f"turn {turn}")
            after = {name: subject.losses(state, corpus) for name, corpus in corpora.items()}
        # There is one network, so nothing can be measured after it diverged.
        except DivergedError as error:
            yield Turn(turn=turn, trained=own, error=str(error))
            return
        # `risen` is still that of the turn before, in which this text was not trained. There is none in turn 1.
        relearned = None if risen is None else share_relearned(risen, before[own], after[own])
        risen = after[other].above(before[other])
        yield Turn(
            turn=turn, trained=own, loss_a=after["a"].mean, loss_b=after["b"].mean, forgotten=risen,
            relearned=relearned,
        )  # fmt: skip
        # Each turn is compared with the one before, not with the beginning.
        before = after


def share_relearned(forgotten: Interval, before: Losses, after: Losses) -> float | None:
    """Return the share of a rise of the loss that was taken back, not clamped; None if the rise is within the noise."""
    # Divided by a rise that may be 0 but for noise, the share could be any number.
    return (before.mean - after.mean) / forgotten.mean if forgotten.low > 0 else None
