"""The rule of early stopping that a job names, and what rules that never pause a trial have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import Field

from raysweep.contracts import GO, Decision, Report


class PromptRule(ABC):
    """Stops a trial or lets it go on, at once.

    A trial whose worker was lost trains some steps again and reports them again: it is answered as it was the first
    time, and nothing is counted twice.
    """

    def __init__(self) -> None:
        self._judged: dict[int, float] = {}
        self._stopped: dict[int, Decision] = {}

    @abstractmethod
    def judge(self, report: Report) -> str | None:
        """Return why the trial should stop; each report comes once, a trial's by rising share."""

    def report(self, report: Report) -> Decision:
        trial = report.trial
        if trial not in self._stopped and report.share > self._judged.get(trial, 0.0):
            self._judged[trial] = report.share
            reason = self.judge(report)
            if reason is not None:
                self._stopped[trial] = Decision(action="stop", reason=reason)
        return self._stopped.get(trial, GO)

    def ended(self, trial: int) -> None:  # noqa: B027  # most rules have nothing to forget
        ...

    def decided(self) -> dict[int, Decision]:
        return {}


Reduction = Annotated[float, Field(gt=1, allow_inf_nan=False)]


Share = Annotated[float, Field(gt=0, lt=1)]


ROUNDING = 1e-9
"""Shares are sums of floating-point numbers: so far below a rung is on it."""


def rungs_from(first: float, reduction: float) -> tuple[float, ...]:
    """Return first, first * reduction, and so on, as far as they are below 1, which is the end anyway."""
    rungs = [first]
    while rungs[-1] * reduction < 1 - ROUNDING:
        rungs.append(rungs[-1] * reduction)
    return tuple(rungs)


def is_reached(rung: float, share: float) -> bool:
    return share >= rung * (1 - ROUNDING)


def num_best(count: int, reduction: float) -> int:
    """Return how many of so many trials go on: 1/reduction of them, rounded down, but at least one."""
    return max(1, math.floor(count / reduction + ROUNDING))
