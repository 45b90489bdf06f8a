"""Synchronous successive halving: trials of a cohort wait for each other at every rung, then the best of them go on.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", AISTATS 2016. Trials 1 to `cohort` are the first
cohort, and so on; the last may be smaller. A trial that reaches a rung pauses, without a lane, until every other trial
of its cohort that has not been stopped has reported there or ended, however it did. Of n that reported, the
best floor(n / reduction), at least one, go on; of equal losses, the trial with the lower number's. A trial beyond the
number of trials the rule was built for belongs to no cohort and goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import GO, Decision, Report
from raysweep.strategies.stopping import Reduction, Share, is_reached, num_best, rungs_from


class Cohort:
    """Trials that are halved together."""

    def __init__(self, members: Iterable[int], rungs: Sequence[float], reduction: float) -> None:
        self._rungs = rungs
        self._reduction = reduction
        self._losses: list[dict[int, float]] = [{} for _ in rungs]
        """At each rung, of all trials that reported there."""
        self._alive = set(members)
        """Trials that no rung has stopped."""
        self._ended: set[int] = set()
        self._settled = 0
        """Rungs at which it is known who goes on."""
        self._awaited = set(self._alive)
        """Trials that the next rung waits for."""
        self._stopped: dict[int, Decision] = {}
        self._paused: set[int] = set()
        self._news = False
        """A rung was settled since `decided` last asked."""

    def report(self, report: Report) -> Decision:
        for rung, losses in zip(self._rungs, self._losses, strict=True):
            if is_reached(rung, report.share):
                losses.setdefault(report.trial, report.loss)
        self._no_longer_awaited(report.trial)
        decision = self._decision(report.trial)
        if decision.action == "pause":
            self._paused.add(report.trial)
        else:
            self._paused.discard(report.trial)
        return decision

    def ended(self, trial: int) -> None:
        self._ended.add(trial)
        self._paused.discard(trial)
        self._no_longer_awaited(trial)

    def decided(self) -> dict[int, Decision]:
        if not self._news:
            return {}
        self._news = False
        decisions = {trial: self._decision(trial) for trial in sorted(self._paused)}
        decided = {trial: decision for trial, decision in decisions.items() if decision.action != "pause"}
        self._paused -= decided.keys()
        return decided

    def _no_longer_awaited(self, trial: int) -> None:
        if self._settled == len(self._rungs):
            return
        if trial in self._ended or trial in self._losses[self._settled]:
            self._awaited.discard(trial)
        while not self._awaited and self._settled < len(self._rungs):
            self._settle()

    def _settle(self) -> None:
        """Let the best at the next rung go on, and wait for them at the one after it."""
        rung, losses = self._rungs[self._settled], self._losses[self._settled]
        ranked = sorted((losses[trial], trial) for trial in self._alive & losses.keys())
        best = num_best(len(ranked), self._reduction)
        for place, (loss, trial) in enumerate(ranked[best:], best + 1):
            reason = (
                f"loss {loss:.4f} at {rung:.1%} of its compute is number {place} of {len(ranked)} in its cohort; "
                f"the best {best} go on"
            )
            self._stopped[trial] = Decision(action="stop", reason=reason)
        self._alive = {trial for _, trial in ranked[:best]}
        self._settled += 1
        self._news = True
        reported = self._losses[self._settled].keys() if self._settled < len(self._rungs) else set()
        self._awaited = self._alive - self._ended - reported

    def _decision(self, trial: int) -> Decision:
        if trial in self._stopped:
            return self._stopped[trial]
        reached = sum(trial in losses for losses in self._losses)
        if reached <= self._settled:
            return GO
        return Decision(action="pause", reason=f"waits at {self._rungs[self._settled]:.1%} of its compute")


class Rule:
    def __init__(self, trials: int, cohort: int, rungs: Sequence[float], reduction: float) -> None:
        self._trials = trials
        self._size = cohort
        self._cohorts = [
            Cohort(range(first, min(first + cohort, trials + 1)), rungs, reduction)
            for first in range(1, trials + 1, cohort)
        ]

    def report(self, report: Report) -> Decision:
        cohort = self._cohort_of(report.trial)
        return cohort.report(report) if cohort else GO

    def ended(self, trial: int) -> None:
        cohort = self._cohort_of(trial)
        if cohort:
            cohort.ended(trial)

    def decided(self) -> dict[int, Decision]:
        return {trial: decision for cohort in self._cohorts for trial, decision in cohort.decided().items()}

    def _cohort_of(self, trial: int) -> Cohort | None:
        return self._cohorts[(trial - 1) // self._size] if trial <= self._trials else None


@dataclass(frozen=True, kw_only=True)
class Scheduler(contracts.Scheduler):
    reduction: Reduction = 3.0
    """1/reduction of a cohort go on from each rung to the next, which lies at reduction times the compute."""
    first: Share | None = None
    """Share of a trial's judged compute at the first rung. Default: 1/reduction^2, which makes two rungs."""
    cohort: Annotated[int, Field(ge=1)] | None = None
    """Trials that are halved together. Default: all of the sweep."""

    def build(self, trials: int) -> Rule:
        rungs = rungs_from(self.first or self.reduction**-2, self.reduction)
        return Rule(trials, self.cohort or trials, rungs, self.reduction)
