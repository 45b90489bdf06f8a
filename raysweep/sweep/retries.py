"""What the loss of a trial's workers cost: how far a training phase had come, and from which step it went on."""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.contracts.events import (
    Event,
    PhaseFinished,
    PhaseResumed,
    StepLogged,
    TrainingEvent,
    TrialFinished,
    TrialLeft,
    TrialRetried,
)
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Retry

Where = tuple[str, str, int]
"""Arm, phase and cycle."""


NOWHERE = ("", "", 0)
"""Of a trial that had logged no step when its workers were lost."""


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """Workers lost, by a trial that has not gone on yet."""

    attempt: int
    fruitless: int
    where: Where
    reached: int
    """Last step that the phase had logged."""


class RetryLog:
    """Follows the events of a running sweep, and writes a retry line once a trial goes on after a loss.

    Args:
        interval: steps between two checkpoints inside a phase.
    """

    def __init__(self, folder: SweepFolder, interval: int) -> None:
        self._folder, self._interval = folder, interval
        self._reached: dict[int, tuple[Where, int]] = {}
        """The running training phase of each trial, and its last logged step."""
        self._lost: dict[int, _Loss] = {}

    def note(self, event: Event) -> None:
        """Take in one event of the sweep."""
        match event:
            case StepLogged():
                # Without a checkpoint, a phase begins anew, and its first news is a logged step.
                self._goes_on(event.trial, _where(event), step=0)
                self._reached[event.trial] = (_where(event), int(event.point["step"]))
            case PhaseResumed():
                self._goes_on(event.trial, _where(event), step=event.step)
            case PhaseFinished():
                self._phase_finished(event)
            case TrialRetried():
                self._lose(event)
            case TrialFinished() | TrialLeft():
                self._goes_on(event.trial)
                self._reached.pop(event.trial, None)
            case _:
                # Other events say nothing about the steps of a trial.
                pass

    def _phase_finished(self, event: PhaseFinished) -> None:
        # A new attempt first announces the phases that it finds in the store. They come before the phase that was lost,
        # and the trial has not gone on with that one yet.
        lost, record = self._lost.get(event.trial), event.record
        if lost is None or lost.where == (record["arm"], record["phase"], record["cycle"]):
            self._goes_on(event.trial)
            self._reached.pop(event.trial, None)

    def _lose(self, event: TrialRetried) -> None:
        # Lost once more before it went on: the line of the earlier loss is written, and `reached` stays for this one.
        self._goes_on(event.trial)
        where, reached = self._reached.get(event.trial, (NOWHERE, 0))
        self._lost[event.trial] = _Loss(attempt=event.attempt, fruitless=event.fruitless, where=where, reached=reached)
        # No training phase was running, or none had logged a step: no steps can be repeated, so the line is due now.
        if not reached:
            self._goes_on(event.trial)

    def _goes_on(self, trial: int, where: Where | None = None, step: int = 0) -> None:
        """Write the retry line of a loss, if there is one. Steps are repeated only in the phase that was lost."""
        lost = self._lost.pop(trial, None)
        if lost is None:
            return
        again = where is not None and where == lost.where
        self._folder.add_retry(
            Retry(
                trial=trial,
                attempt=lost.attempt,
                fruitless=lost.fruitless,
                phase=lost.where[1],
                cycle=lost.where[2],
                reached=lost.reached,
                # A checkpoint may be newer than the last logged step: then nothing is repeated.
                resumed_at=min(step, lost.reached) if again else lost.reached,
                interval=self._interval,
            )
        )


def _where(event: TrainingEvent) -> Where:
    return event.arm, event.phase, event.cycle
