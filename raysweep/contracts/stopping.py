"""The contract of early stopping: reports of trials, and the decisions of a stopping rule about them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Report:
    """A trial's held-out loss and compute so far, at an evaluation inside a judged phase.

    Judged phases are the learn phases; in a job without them, the baseline. A loss measured right after a prune is
    never reported: it shows the damage, not how well the trial recovers.
    """

    trial: int
    phase: str
    cycle: int
    step: int
    """Optimizer steps finished in the phase."""
    flops: float
    """Training FLOPs that the trial has spent in its judged phases: three forward passes a token (one forward, and a
    backward that costs two), without absent heads."""
    # Rules compare trials at equal shares, not at equal steps: the steps of a pruned model are cheaper, and
    # two trials of a sweep may have different numbers of them.
    share: float
    """`flops` as a share of what all judged phases of the trial would take with every head present; a pruned model's
    steps are cheaper, so its share is below 1 even at the end."""
    loss: float
    """Held-out loss, finite: a trial whose loss is not fails before it reports."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a worker does next with its trial.

    A stopping rule decides `go` on, `stop` for good, or `pause` until it has decided. The sweep itself decides `wait`
    when another trial is running the phase that comes next, and `leave` when the sweep ends here, to be resumed.
    """

    action: Literal["go", "stop", "pause", "wait", "leave"]
    reason: str = ""


GO = Decision(action="go")


# A resumed sweep rebuilds its rule by giving it all recorded reports again, so a rule may depend on nothing
# else: no clock, no random numbers without a fixed seed.
class StoppingRule(Protocol):
    """Decides which trials of one sweep go on. The same calls in the same order lead to the same decisions."""

    @abstractmethod
    def report(self, report: Report) -> Decision:
        """Return what the trial of a report does next. A repeated report gets the answer it had the first time."""

    def ended(self, trial: int) -> None:
        """Note that a trial has ended, however it did: no further report of it will come. Default: nothing to note."""
        return None

    def decided(self) -> dict[int, Decision]:
        """Return, once each, the decisions about paused trials: `go` or `stop`. Default: none, no trial is paused."""
        return {}


class Scheduler(Protocol):
    """strategies/schedulers/<name>.py: which trials are stopped early; builds a rule for each sweep."""

    @abstractmethod
    def build(self, trials: int) -> StoppingRule:
        """Return a new rule for a sweep of so many trials."""

    def first_rung(self) -> float | None:
        """Return the share of compute at which trials are first compared. Default: at whichever they report."""
        return None


# An exception, because it has to end a trial from inside a
# phase. It is no error: the worker then takes its next trial.
class Interrupted(Exception):
    """A trial does not go on in this worker; its finished steps are in the phase store. Raised on all ranks alike."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.action}: {decision.reason}")
        self.decision = decision


def raise_unless_go(decision: Decision) -> None:
    """Return if the decision is `go`.

    Raises:
        Interrupted: it is any other.
    """
    if decision.action != "go":
        raise Interrupted(decision)


# A step can both log its progress and report an evaluation, and each of these messages is answered.
def first_not_go(decisions: Iterable[Decision]) -> Decision:
    """Return the first decision that is not `go`, or GO if there is none."""
    return next((decision for decision in decisions if decision.action != "go"), GO)
