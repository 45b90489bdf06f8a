"""The reports of a trial to its stopping rule: held-out losses against the share of compute that is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raysweep.contracts import GO, Decision, Report
from raysweep.contracts.events import Reported
from raysweep.job.plan import PhasePlan, TrialPlan
from raysweep.records.schema import PhaseRecord


@dataclass(kw_only=True)
class JudgedProgress:
    """Reports the held-out losses of a trial's learn phases; of its baseline, if it has no learn phase.

    A trial whose plan is not `judged` reports nothing.
    """

    plan: TrialPlan
    ask: Callable[[Reported], Decision]
    """Hands a report to the sweep, and returns its decision on the trial."""
    spent: float = 0.0
    """Training FLOPs of the judged phases that are over."""

    def judges(self, phase: PhasePlan) -> bool:
        """Return whether the losses of a phase are reported."""
        if not self.plan.judged:
            return False
        learns = any(own.kind == "learn" for own in self.plan.phases)
        return phase.kind == ("learn" if learns else "baseline") and phase.steps > 0

    def report(
        self, phase: PhasePlan, step: int, *, loss: float, flops: float, dense_flops_per_step: float
    ) -> Decision:
        """Report an evaluation inside a phase; return the sweep's decision on the trial.

        Args:
            loss: held-out loss.
            flops: training FLOPs of the phase so far.
            dense_flops_per_step: training FLOPs of a step with every head present.
        """
        if not self.judges(phase):
            return GO
        # Shares are of the dense model's compute, which is the same for all trials of equal steps. A share of the
        # pruned model's own would put trials at equal rungs that have spent different amounts.
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
        return self.ask(Reported(trial=report.trial, report=report))

    def finished(self, phase: PhasePlan, record: PhaseRecord) -> Decision:
        """Report the end of a phase; return the sweep's decision on the trial."""
        if not self.judges(phase):
            return GO
        # From the record and not from a counter: the phase may be another trial's, taken from the store.
        dense = record.dense_training_flops / phase.steps
        flops = record.training_flops
        decision = self.report(phase, phase.steps, loss=record.loss, flops=flops, dense_flops_per_step=dense)
        self.spent += flops
        return decision
