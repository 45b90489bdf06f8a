"""The rule of early stopping that a job names, and what rules that never pause a trial have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from raysweep import registry
from raysweep.contracts import GO, Decision, Report, StoppingRule
from raysweep.spec import SearchSpec


def rule_of(search: SearchSpec | None) -> StoppingRule:
    """Return the rule that a search asks for; none stops the single trial of a job without a search."""
    search = search or SearchSpec()
    rule: StoppingRule = registry.build("schedulers", search.stopping.name, search.stopping.options).build(
        search.trials
    )
    return rule


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
