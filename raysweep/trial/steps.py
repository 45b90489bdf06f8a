"""The order in which a trial runs its phases and its control arms, for real trials and simulated ones alike.

Torch-free: the simulator imports it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol, TypeVar

from raysweep.contracts import raise_unless_go
from raysweep.contracts.events import ControlFailed, Event
from raysweep.errors import TrialError
from raysweep.job.plan import PhasePlan, TrialPlan
from raysweep.records.halting import find_halt, reached, result
from raysweep.records.schema import PhaseRecord
from raysweep.trial.judged import JudgedProgress

Yielded_co = TypeVar("Yielded_co", covariant=True)
"""What a runner yields on its way: the records of a real trial, the seconds of a simulated one."""


class PhaseRunner(Protocol[Yielded_co]):
    """Runs single phases of one trial, and keeps the model between them."""

    def run(self, phase: PhasePlan, judged: JudgedProgress | None) -> Generator[Yielded_co, None, PhaseRecord]:
        """Run a phase or take its outcome from the store; return its record.

        Args:
            judged: reports the evaluations inside the phase; None in control arms.

        Raises:
            TrialError: the phase cannot be carried out as asked.
            Interrupted: the sweep's decision on the trial is another than `go`.
        """

    def begin_arm(self, arm: str) -> None:
        """Start a control arm: no model, no previous phase."""

    def skip(self, phase: PhasePlan) -> None:
        """Pass a phase of a control arm that the trial itself has run: the arm goes on from its outcome."""

    def post(self, event: Event) -> None:
        """Hand an event to the sweep."""


def run_in_order(plan: TrialPlan, runner: PhaseRunner[Yielded_co], judged: JudgedProgress) -> Iterator[Yielded_co]:
    """Run the trial's own phases, until the last or until it halts; then those that its control arms add.

    A control arm that cannot be carried out is reported, and ends no trial.

    Raises:
        TrialError: one of the trial's own phases cannot be carried out as asked.
        Interrupted: the sweep's decision on the trial is another than `go`.
    """
    own: list[PhaseRecord] = []
    for phase in plan.phases:
        own.append((yield from runner.run(phase, judged)))
        decision = judged.finished(phase, own[-1])
        # The end of the last phase is reported, too, for others to be compared with. But a trial that is through, or
        # that halts by its own rules, cannot be stopped or paused any more, whatever the answer.
        if find_halt(own, plan.halting) or phase is plan.phases[-1]:
            break
        raise_unless_go(decision)
    kept, _ = result(own, plan.halting)
    keys = {record.key for record in own}
    for arm, phases in plan.controls.items():
        runner.begin_arm(arm)
        try:
            # An arm goes as far as the cycle of the trial's result: only equal cycles can be compared.
            for phase in reached(arm, phases, kept.cycle):
                if phase.key in keys:
                    runner.skip(phase)
                else:
                    yield from runner.run(phase, None)
        except TrialError as error:
            runner.post(ControlFailed(trial=plan.trial, arm=arm, error=str(error)))
