"""Parts that the stopping rules in schedulers/ share: a base for rules that never pause a trial, and rungs."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from raysweep.contracts import GO, Decision, Report, StoppingRule
from raysweep.job import bounds


class PromptRule(StoppingRule):
    """Decides at each report whether its trial stops or goes on; a subclass says why a trial stops.

    A trial whose worker was lost trains some steps again and reports them again: it gets the answers it had the first
    time, and no report counts twice.
    """

    def __init__(self) -> None:
        self._latest_share: dict[int, float] = {}
        self._stopped: dict[int, Decision] = {}

    @abstractmethod
    def reason_to_stop(self, report: Report) -> str | None:
        """Return why the trial stops, or None; called once for each report, a trial's in the order of their shares."""

    def report(self, report: Report) -> Decision:
        trial = report.trial
        # The share of compute rises with every step. A report whose share is not above the latest comes
        # from an attempt that repeats steps after a lost worker: the rule has counted it already.
        if trial not in self._stopped and report.share > self._latest_share.get(trial, 0.0):
            self._latest_share[trial] = report.share
            reason = self.reason_to_stop(report)
            if reason is not None:
                self._stopped[trial] = Decision(action="stop", reason=reason)
        return self._stopped.get(trial, GO)


Reduction = Annotated[float, Field(gt=1, le=bounds.TRIALS)]


Share = Annotated[float, Field(gt=0, lt=1)]


ROUNDING = 1e-9
"""Relative. Shares are sums of floating-point numbers: one that is below a rung by less than this has reached it."""


def rungs_from(first: float, reduction: float) -> tuple[float, ...]:
    """Return the rungs below 1: first, first * reduction, first * reduction^2, ..."""
    # No rung at 1: a trial that gets there has ended anyway.
    rungs = [first]
    while rungs[-1] * reduction < 1 - ROUNDING:
        rungs.append(rungs[-1] * reduction)
    return tuple(rungs)


def is_reached(rung: float, share: float) -> bool:
    """Return whether a share of compute is at or beyond a rung."""
    return share >= rung * (1 - ROUNDING)


@dataclass(frozen=True, kw_only=True)
class AtRung:
    """A trial's loss at a rung."""

    loss: float
    where: str
    """The share of its compute at which the loss was measured, or the shares between which it was, in words."""


def loss_at(rung: float, before: Report | None, report: Report) -> AtRung | None:
    """Return a trial's loss at a rung that its latest report has reached; None if that cannot be known.

    A pruned model's steps are cheaper, so the evaluations of two trials lie at different shares of compute. To compare
    them at one, the loss between two evaluations of a phase is taken from the line through them.

    Args:
        before: the report of the trial before the latest.
    """
    if is_reached(report.share, rung):
        return AtRung(loss=report.loss, where=f"{report.share:.1%} of its compute")
    # Between two phases a prune lies, and the loss jumps.
    if before is None or (before.cycle, before.phase) != (report.cycle, report.phase):
        return None
    part = (rung - before.share) / (report.share - before.share)
    shares = f"between its evaluations at {before.share:.1%} and {report.share:.1%}"
    return AtRung(loss=before.loss + part * (report.loss - before.loss), where=f"{rung:.1%} of its compute, {shares},")


def num_best(count: int, reduction: float) -> int:
    """Return how many of `count` trials go on: 1/reduction of them, rounded down, but at least one."""
    # 33 / 1.1 is 29.999999999999996 in floating point: without the addition, floor would lose a trial.
    return max(1, math.floor(count / reduction + ROUNDING))
