"""Early stopping in a sweep: the rule that the job names, its answers, and the trials that it has paused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from raysweep.contracts import Decision, Report, StoppingRule
from raysweep.job import registry
from raysweep.job.search import SearchSpec

Evaluation = tuple[int, int, str, int]
"""Trial, cycle, phase and step of a report."""


def rule_of(search: SearchSpec | None) -> StoppingRule:
    """Return the stopping rule that a job names; a job without a search gets the default of `SearchSpec`."""
    search = search or SearchSpec()
    rule: StoppingRule = registry.build("schedulers", search.stopping.name, search.stopping.options).build(
        search.trials
    )
    return rule


@dataclass(kw_only=True)
class EarlyStopping:
    """The stopping rule of a sweep, with a memory of its answers and of the trials that it has paused."""

    rule: StoppingRule
    _answers: dict[Evaluation, Decision] = field(default_factory=dict)
    _paused: dict[int, int] = field(default_factory=dict)
    """Trials that wait for the rule, or to be submitted once more -> their attempts so far."""
    _decisions: dict[int, Decision] = field(default_factory=dict)
    """What the rule has decided on paused trials since. Such a trial may still be on its way off its lane."""

    def is_new(self, report: Report) -> bool:
        """Return whether the rule has not seen a report: a later attempt of a trial repeats those before its end."""
        return _evaluation(report) not in self._answers

    def decide(self, report: Report) -> Decision:
        """Return the rule's answer to a report; a repeated report gets the same answer, unless that was `pause`."""
        evaluation = _evaluation(report)
        known = self._answers.get(evaluation)
        # A trial that was paused and resumed repeats the report at which it paused. By now the rule has decided on it,
        # so the rule is asked again: the old answer would pause the trial for ever.
        if known is None or known.action == "pause":
            self._decisions.pop(report.trial, None)
            known = self._answers[evaluation] = self.rule.report(report)
        return known

    def replay(self, reports: Iterable[Report], ended: Iterable[int]) -> set[int]:
        """Bring the rule to the state in which earlier sessions left it; return the trials that it left paused.

        Args:
            reports: of all trials, in the order in which they were made.
            ended: trials that have a final record.
        """
        # The last answer of each trial counts: a trial that reported after a pause had been resumed.
        answers = {report.trial: self.decide(report) for report in reports}
        for trial in ended:
            answers.pop(trial, None)
            self.rule.ended(trial)
        paused = {trial for trial, answer in answers.items() if answer.action == "pause"}
        # Attempts count within one session: the earlier ones are in the trial's proposal.
        self._paused = dict.fromkeys(sorted(paused), 1)
        return paused

    def pause(self, trial: int, attempts: int) -> None:
        """Note that a trial is off its lane, paused, after some attempts."""
        self._paused[trial] = attempts

    def unpause(self, trial: int) -> int:
        """Forget that a trial was paused; return its attempts so far, 1 for a trial that was never paused."""
        return self._paused.pop(trial, 1)

    def ready(self) -> list[int]:
        """Return the paused trials on which the rule has decided, and which have left their lanes."""
        self._decisions.update(self.rule.decided())
        return [trial for trial in self._decisions if trial in self._paused]

    def take_decision(self, trial: int) -> Decision:
        """Return what the rule decided on a trial of `ready`, once."""
        return self._decisions.pop(trial)

    def ended(self, trial: int) -> None:
        """Note that a trial has ended: no report of it is to come, and no decision on it counts."""
        self._decisions.pop(trial, None)
        self.rule.ended(trial)


def _evaluation(report: Report) -> Evaluation:
    return report.trial, report.cycle, report.phase, report.step
