"""Stop a trial whose recovery has come to a halt: its loss hardly falls any more.

The slope is that of the least-squares line through the last `reports` losses of one learn phase, in nats per unit of
`Report.share`, which runs from 0 to 1 over a trial's judged compute. A trial stops if its loss falls by less than
`min_slope`. Phases are fitted apart, since the jump that a prune makes between two of them is no slope. The trial with
the lowest loss of all reports so far goes on, flat or not, so that the best trial of a sweep always has a result.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from raysweep import contracts
from raysweep.contracts import Report
from raysweep.job import bounds
from raysweep.strategies.stopping import PromptRule


class Rule(PromptRule):
    """Stops a trial when its loss curve is flat."""

    def __init__(self, min_slope: float, reports: int, grace: float) -> None:
        super().__init__()
        self._min_slope = min_slope
        self._reports = reports
        self._grace = grace
        self._latest: dict[int, deque[Report]] = {}
        self._best: dict[int, float] = {}
        self._lowest = math.inf

    def reason_to_stop(self, report: Report) -> str | None:
        latest = self._latest.setdefault(report.trial, deque(maxlen=self._reports))
        if latest and (latest[-1].cycle, latest[-1].phase) != (report.cycle, report.phase):
            latest.clear()
        latest.append(report)
        # The best losses are kept over all phases and from the first report on, within the grace, too.
        self._best[report.trial] = min(report.loss, self._best.get(report.trial, report.loss))
        self._lowest = min(self._lowest, report.loss)
        if len(latest) < self._reports or report.share < self._grace or self._best[report.trial] == self._lowest:
            return None
        fall = -slope([item.share for item in latest], [item.loss for item in latest])
        if fall >= self._min_slope:
            return None
        reports = f"its last {len(latest)} reports"
        return f"loss falls by {fall:.4f} nats per unit of compute over {reports}, less than {self._min_slope:g}"


def slope(x: list[float], y: list[float]) -> float:
    """Return the slope of the least-squares line."""
    # With x centred, y need not be: the terms with its mean add up to 0.
    from_mean = np.array(x) - np.mean(x)
    return float(from_mean @ np.array(y) / (from_mean @ from_mean))


@dataclass(frozen=True, kw_only=True)
class Scheduler(contracts.Scheduler):
    min_slope: Annotated[float, Field(gt=0, le=bounds.NATS)] = 0.05
    """Nats by which the loss must fall, at its present slope, over the whole of a trial's judged compute."""
    reports: Annotated[int, Field(ge=2, le=bounds.STEPS)] = 4
    """Number of latest reports of a phase that the slope is fitted to."""
    grace: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of its judged compute that a trial may spend before it can be stopped."""

    def build(self, trials: int) -> Rule:
        return Rule(self.min_slope, self.reports, self.grace)
