"""How far a trial has come in the phases that stopping rules judge, in compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from raysweep.contracts import GO, Decision, Report
from raysweep.job.plan import PhasePlan, TrialPlan
from raysweep.records.schema import PhaseRecord


@dataclass(kw_only=True)
class JudgedProgress:
    """Reports held-out losses of a trial's learn phases; of its baseline, where there are none; if its plan says so."""

    plan: TrialPlan
    ask: Callable[[dict[str, Any]], Decision]
    """Tells the sweep of a report, and returns what becomes of the trial."""
    spent: float = 0.0
    """Training FLOPs of its judged phases that are over."""

    def judges(self, phase: PhasePlan) -> bool:
        if not self.plan.judged:
            return False
        learns = any(own.kind == "learn" for own in self.plan.phases)
        return phase.kind == ("learn" if learns else "baseline") and phase.steps > 0

    def report(
        self, phase: PhasePlan, step: int, *, loss: float, flops: float, dense_flops_per_step: float
    ) -> Decision:
        """Report an evaluation inside a phase; return what becomes of the trial.

        Args:
            flops: what the phase has spent so far.
            dense_flops_per_step: what a step would take with every head there.
        """
        if not self.judges(phase):
            return GO
        planned = sum(own.steps for own in self.plan.phases if self.judges(own))
        report = Report(
            trial=self.plan.trial,
            phase=phase.kind,
            cycle=phase.cycle,
            step=step,
            flops=self.spent + flops,
            share=(self.spent + flops) / (dense_flops_per_step * planned),
            loss=loss,
        )
        return self.ask(report_event(report))

    def finished(self, phase: PhasePlan, record: PhaseRecord) -> Decision:
        """Report the end of a phase, run by whichever trial."""
        if not self.judges(phase):
            return GO
        dense = record.dense_training_flops / phase.steps
        flops = record.training_flops
        decision = self.report(phase, phase.steps, loss=record.loss, flops=flops, dense_flops_per_step=dense)
        self.spent += flops
        return decision


def report_event(report: Report) -> dict[str, Any]:
    """Return a report as the sweep is told of it."""
    return {"type": "report", "trial": report.trial, "report": asdict(report)}
