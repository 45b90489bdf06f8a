"""Stop a trial whose best loss so far is worse than the median of what the others averaged by then.

Golovin et al., "Google Vizier", KDD 2017, section 3.2.2: at each report, the lowest loss of the trial is compared with
the running averages of the other trials, each over its reports up to the same share of compute. Another trial counts if
it has come as far, whether it is running or has ended. Vizier counts only completed trials, but then no trial could be
stopped until the first lanes have completed theirs. A loss equal to the median goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from raysweep import contracts
from raysweep.contracts import Array, Report
from raysweep.job import bounds
from raysweep.strategies.stopping import PromptRule


class AveragedLosses:
    """Running averages of the losses of all trials: a row for each trial, a column for each report."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._count: list[int] = []
        # Arrays, because each report asks for the averages of all trials at once. A share of infinity marks
        # a column that has no report yet: it is never at or below the share that is asked for.
        self._shares: Array = np.full((8, 8), np.inf)
        self._averages: Array = np.zeros((8, 8))

    def add(self, report: Report) -> None:
        row = self._rows.setdefault(report.trial, len(self._rows))
        if row == len(self._count):
            self._count.append(0)
        count = self._count[row]
        # Doubling keeps the cost of growing proportional to the number of reports.
        for axis, needed in enumerate((row + 1, count + 1)):
            if needed > self._shares.shape[axis]:
                self._shares = np.concatenate([self._shares, np.full_like(self._shares, np.inf)], axis)
                self._averages = np.concatenate([self._averages, np.zeros_like(self._averages)], axis)
        before = self._averages[row, count - 1] * count if count else 0.0
        self._shares[row, count] = report.share
        self._averages[row, count] = (before + report.loss) / (count + 1)
        self._count[row] += 1

    def averages_of_others(self, trial: int, share: float) -> Array:
        """Return the running averages, up to a share, of the other trials that have come as far."""
        shares = self._shares[: len(self._count)]
        so_far = (shares <= share).sum(axis=1)
        # A trial's latest report is in the column before its count.
        last = shares[np.arange(len(shares)), np.array(self._count) - 1]
        others = (last >= share) & (so_far > 0)
        others[self._rows[trial]] = False
        rows = np.flatnonzero(others)
        return self._averages[rows, so_far[rows] - 1]


class Rule(PromptRule):
    """Stops a trial whose best loss is above the median of the others' averages."""

    def __init__(self, min_trials: int, grace: float) -> None:
        super().__init__()
        self._min_trials = min_trials
        self._grace = grace
        self._curves = AveragedLosses()
        self._best: dict[int, float] = {}

    def reason_to_stop(self, report: Report) -> str | None:
        # Within its grace, too, a report is counted: other trials are compared with it.
        self._curves.add(report)
        best = self._best[report.trial] = min(report.loss, self._best.get(report.trial, report.loss))
        if report.share < self._grace:
            return None
        averages = self._curves.averages_of_others(report.trial, report.share)
        if len(averages) < self._min_trials or best <= (median := float(np.median(averages))):
            return None
        return (
            f"best loss {best:.4f} by {report.share:.1%} of its compute is above {median:.4f}, the median of the "
            f"averages of {len(averages)} others"
        )


@dataclass(frozen=True, kw_only=True)
class Scheduler(contracts.Scheduler):
    min_trials: Annotated[int, Field(ge=1, le=bounds.TRIALS)] = 5
    """Other trials that must have come as far before a trial can be stopped."""
    grace: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of its judged compute that a trial may spend before it can be stopped."""

    def build(self, trials: int) -> Rule:
        return Rule(self.min_trials, self.grace)
