"""Synchronous successive halving: trials of a cohort wait for each other at every rung, then the best of them go on.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", AISTATS 2016. Trials 1 to `cohort` are the first
cohort, and so on; the last may be smaller. A trial that reaches a rung pauses, without a lane, until every other trial
of its cohort that has not been stopped has come there or has ended in any way. Its loss at the rung is that of its
evaluation there, or lies on the line between the evaluations around it. Of n that have one, the best floor(n /
reduction), at least one, go on; of two equal losses, that of the lower trial number is better. A trial that passes a
rung before its first evaluation goes on, as does one with a number above those that the rule was built for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import GO, Decision, Report, StoppingRule
from raysweep.job import bounds
from raysweep.strategies.stopping import AtRung, Reduction, Share, is_reached, loss_at, num_best, rungs_from


class Cohort:
    """Trials that are halved together."""

    def __init__(self, members: Iterable[int], rungs: Sequence[float], reduction: float) -> None:
        self._rungs = rungs
        self._reduction = reduction
        self._losses: list[dict[int, AtRung | None]] = [{} for _ in rungs]
        """The losses at each rung: trial -> loss; None: it passed the rung before its first evaluation."""
        self._latest: dict[int, Report] = {}
        self._alive = set(members)
        """Trials that no rung has stopped."""
        self._ended: set[int] = set()
        self._settled = 0
        """Number of rungs at which all decisions have been made; the next rung has this index."""
        self._awaited = set(self._alive)
        """Trials that have neither reported at the next rung nor ended."""
        self._stopped: dict[int, Decision] = {}
        self._paused: set[int] = set()
        self._news = False
        """Whether a rung has been settled since the last call of `decided`."""

    def report(self, report: Report) -> Decision:
        before = self._latest.get(report.trial)
        for rung, losses in zip(self._rungs, self._losses, strict=True):
            # Only the first report at or beyond a rung counts, also when a later attempt repeats it.
            if is_reached(rung, report.share) and report.trial not in losses:
                losses[report.trial] = loss_at(rung, before, report)
        if before is None or report.share > before.share:
            self._latest[report.trial] = report
        self._no_longer_awaited(report.trial)
        # This very report may have settled the rung, so the trial's own decision comes after the settling.
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
        # Called whenever a sweep looks for a trial to run: mostly nothing has been settled since the last call.
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
        # One event can settle several rungs: the survivors may have
        # reported at the next one already, or have ended.
        while not self._awaited and self._settled < len(self._rungs):
            self._settle()

    def _settle(self) -> None:
        """Stop all but the best at the next rung; the rung after it waits for those."""
        losses = self._losses[self._settled]
        # Trials that an earlier rung stopped may have a loss here: a report can reach two rungs at once.
        came = {trial: losses[trial] for trial in self._alive & losses.keys()}
        ranked = sorted((found.loss, trial, found.where) for trial, found in came.items() if found is not None)
        best = num_best(len(ranked), self._reduction)
        for place, (loss, trial, where) in enumerate(ranked[best:], best + 1):
            reason = (
                f"loss {loss:.4f} at {where} is number {place} of {len(ranked)} in its cohort; the best {best} go on"
            )
            self._stopped[trial] = Decision(action="stop", reason=reason)
        self._alive = came.keys() - {trial for _, trial, _ in ranked[best:]}
        self._settled += 1
        self._news = True
        # Behind the last rung there is nothing to wait for.
        reported = self._losses[self._settled].keys() if self._settled < len(self._rungs) else set()
        self._awaited = self._alive - self._ended - reported

    def _decision(self, trial: int) -> Decision:
        if trial in self._stopped:
            return self._stopped[trial]
        # Rungs are reached in order, so a count says which: beyond the settled ones, the trial has to wait.
        reached = sum(trial in losses for losses in self._losses)
        if reached <= self._settled:
            return GO
        return Decision(action="pause", reason=f"waits at {self._rungs[self._settled]:.1%} of its compute")


class Rule(StoppingRule):
    """Hands each report to the cohort of its trial."""

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
        # Trials are numbered from 1. Control arms, repeats on other seeds and trials added to a finished
        # sweep can have numbers above those that the rule was built for.
        return self._cohorts[(trial - 1) // self._size] if trial <= self._trials else None


@dataclass(frozen=True, kw_only=True)
class Scheduler(contracts.Scheduler):
    reduction: Reduction = 3.0
    """1/reduction of a cohort go on from each rung to the next, which is at reduction times the compute."""
    first: Share | None = None
    """Share of a trial's judged compute at the first rung. Default: 1/reduction^2, which makes two rungs."""
    cohort: Annotated[int, Field(ge=1, le=bounds.TRIALS)] | None = None
    """Number of trials that are halved together. Default: all of the sweep."""

    def first_rung(self) -> float:
        return self.first or self.reduction**-2

    def build(self, trials: int) -> Rule:
        rungs = rungs_from(self.first_rung(), self.reduction)
        return Rule(trials, self.cohort or trials, rungs, self.reduction)
