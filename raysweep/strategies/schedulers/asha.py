"""Asynchronous successive halving: at each rung a trial goes on if it is among the best 1/reduction so far.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, in the variant that stops trials instead
of pausing them. A trial's loss at a rung is that of its evaluation there, or lies on the line between the evaluations
around it; a rung before its first evaluation does not judge it. It is compared with the losses of all trials that have
come to the rung so far, its own included. Of n, the best floor(n / reduction), at
least one, go on; so the first always does, and until 2 x reduction have reported only a new best does. Equal losses
share the better place. A report that passes several rungs at once is compared at each, the lowest first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from raysweep import contracts
from raysweep.contracts import Report
from raysweep.strategies.stopping import PromptRule, Reduction, Share, is_reached, loss_at, num_best, rungs_from


class Rule(PromptRule):
    def __init__(self, rungs: Sequence[float], reduction: float) -> None:
        super().__init__()
        self._rungs = rungs
        self._reduction = reduction
        self._losses: list[list[float]] = [[] for _ in rungs]
        """The losses at each rung, of all trials that reported there, sorted."""
        self._passed: dict[int, int] = {}
        """Number of rungs that each trial has come to."""
        self._before: dict[int, Report] = {}
        """The report of each trial before its latest."""

    def reason_to_stop(self, report: Report) -> str | None:
        before, self._before[report.trial] = self._before.get(report.trial), report
        for number in range(self._passed.get(report.trial, 0), len(self._rungs)):
            if not is_reached(self._rungs[number], report.share):
                break
            self._passed[report.trial] = number + 1
            found = loss_at(self._rungs[number], before, report)
            if found is None:
                continue
            losses = self._losses[number]
            # The trial's own loss counts among the n, as in the paper. bisect_left: of equal losses all
            # have the place of the first.
            insort(losses, found.loss)
            place, best = bisect_left(losses, found.loss) + 1, num_best(len(losses), self._reduction)
            if place > best:
                return (
                    f"loss {found.loss:.4f} at {found.where} is number {place} of {len(losses)}; the best {best} go on"
                )
        return None


@dataclass(frozen=True, kw_only=True)
class Scheduler(contracts.Scheduler):
    reduction: Reduction = 3.0
    """1/reduction of the trials go on from each rung to the next, which lies at reduction times the compute."""
    first: Share | None = None
    """Share of a trial's judged compute at the first rung. Default: 1/reduction^2, which makes two rungs."""

    def first_rung(self) -> float:
        return self.first or self.reduction**-2

    def build(self, trials: int) -> Rule:
        return Rule(rungs_from(self.first_rung(), self.reduction), self.reduction)
