"""Describe early stopping: reports of trials, and the decisions of a stopping rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a trial stands at a held-out evaluation inside a training phase that is judged.

    Judged are learn phases; in a job without them, the baseline. Never a phase right after a prune.
    """

    trial: int
    phase: str
    cycle: int
    step: int
    """Optimizer steps finished in the phase."""
    flops: float
    """Training FLOPs that the trial has spent in its judged phases, three forward passes' worth a token, absent heads
    left out."""
    share: float
    """`flops` as a share of what all judged phases of the trial would take with every head there; a pruned model's
    steps are cheaper, so its share is below 1 even at the end."""
    loss: float
    """Held-out loss; finite."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a worker is told to do with its trial.

    A stopping rule says `go` on, `stop` for good, or `pause` until it decides. Beside rules there are `wait`: another
    trial is running the phase that comes next; and `leave`: the sweep ends here, to be resumed.
    """

    action: Literal["go", "stop", "pause", "wait", "leave"]
    reason: str = ""


GO = Decision(action="go")


class StoppingRule(Protocol):
    """Judges the trials of one sweep as they report. Told the same in the same order, it decides the same."""

    def report(self, report: Report) -> Decision: ...

    def ended(self, trial: int) -> None:
        """Take note that a trial has ended, however: no report of it is to come."""

    def decided(self) -> dict[int, Decision]:
        """Return, once each, the paused trials that may now `go` on, and those that are to `stop`."""


class Scheduler(Protocol):
    """strategies/schedulers/<name>.py: a rule of early stopping, its options as fields."""

    def build(self, trials: int) -> StoppingRule:
        """Return the rule for a sweep of so many trials."""


class Interrupted(Exception):
    """The trial does not go on here; what it has done is in the store. Raised on all ranks alike."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.action}: {decision.reason}")
        self.decision = decision


def raise_unless_go(decision: Decision) -> None:
    """Go on, or not.

    Raises:
        Interrupted: the decision is another than `go`.
    """
    if decision.action != "go":
        raise Interrupted(decision)


def first_not_go(decisions: Iterable[Decision]) -> Decision:
    """Return the first decision that is not to go on, if any."""
    return next((decision for decision in decisions if decision.action != "go"), GO)
