"""Turn the events of a running sweep into records, TensorBoard runs, and calls of an observer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import assert_never

from raysweep.contracts import Report
from raysweep.contracts.events import (
    ClientSilent,
    ControlFailed,
    Event,
    LaneHeard,
    LaneSilent,
    LaneStarted,
    PhaseClaimed,
    PhaseFinished,
    PhaseResumed,
    Reported,
    StepLogged,
    SweepInterrupted,
    TrialEvent,
    TrialFinished,
    TrialLeft,
    TrialPaused,
    TrialReleased,
    TrialResumed,
    TrialRetried,
    TrialWaiting,
    Warned,
)
from raysweep.errors import RunError
from raysweep.job.jobfile import Job
from raysweep.job.plan import TrialPlan
from raysweep.records import objectives
from raysweep.records.disk import refuse_when_full
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord, Proposal, TrialRecord
from raysweep.records.silence import write_silent
from raysweep.reports.tensorboard.hparams import write_experiment
from raysweep.reports.tensorboard.writer import NoWriter, TrialWriter
from raysweep.sweep.observer import Observer
from raysweep.sweep.retries import RetryLog

NO_OUTCOME = objectives.Outcome(objectives={}, violations={}, halt=None)


@dataclass(kw_only=True)
class _OpenTrial:
    """A trial that has started and has no final record."""

    proposal: Proposal
    plan: TrialPlan
    writer: TrialWriter | NoWriter
    started: float
    phases: dict[str, PhaseRecord] = field(default_factory=dict)
    """Its finished phases by key, in order. Each attempt also announces those that it finds in the store."""
    control_errors: dict[str, str] = field(default_factory=dict)


class Recorder:
    """Writes the archive of one running sweep. Safe to call from several threads.

    Args:
        clock: returns the time in seconds, from any start.
        tensorboard: whether to write TensorBoard runs, too.
    """

    def __init__(
        self,
        folder: SweepFolder,
        job: Job,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.perf_counter,
        tensorboard: bool = True,
    ) -> None:
        self._folder = folder
        self._search = job.spec.search
        self._space = job.space
        self._observer = observer
        self._open: dict[int, _OpenTrial] = {}
        self._ended: dict[int, TrialRecord] = {}
        self._left: set[int] = set()
        """Trials left for a later session, which are not open in this one any more."""
        self._reports = {trial: list(reports) for trial, reports in folder.reports().items()}
        self._retries = RetryLog(folder, job.spec.scale.checkpoint_every_steps)
        self._failure: Exception | None = None
        self._silent: dict[str, float] = {}
        """Silent lanes, and when each was last heard of, in seconds since the epoch."""
        write_silent(folder.path, {})
        # The caller of `record_of` and of `start_trial` may be another thread than that which handles events. The lock
        # is reentrant, as `handle` needs it when it calls `fail`.
        self._changed = threading.Condition()
        self._clock = clock
        self._tensorboard = folder.path / "tensorboard" if tensorboard else None
        # Before the first trial: TensorBoard shows the columns of the HParams table only where they are declared.
        if self._tensorboard is not None:
            with refuse_when_full(folder.path):
                write_experiment(self._tensorboard, job.space)

    @property
    def open_trials(self) -> int:
        with self._changed:
            return len(self._open)

    def start_trial(self, proposal: Proposal, plan: TrialPlan) -> None:
        """Open the record of a trial that is about to run; a trial that was paused goes on with the one it has."""
        with self._changed:
            self._left.discard(plan.trial)
            if plan.trial not in self._open:
                with refuse_when_full(self._folder.path):
                    writer = self._writer(proposal)
                self._open[plan.trial] = _OpenTrial(proposal=proposal, plan=plan, writer=writer, started=self._clock())
            self._observer.trial_started(plan)

    def _writer(self, proposal: Proposal) -> TrialWriter | NoWriter:
        if self._tensorboard is None:
            return NoWriter()
        return TrialWriter(self._tensorboard, proposal.trial, proposal.values, self._space)

    def handle(self, event: Event) -> None:
        """Record one event of the sweep."""
        with self._changed:
            # A worker that was given up for lost may still post events of a trial that is over.
            if isinstance(event, TrialEvent) and (event.trial in self._ended or event.trial in self._left):
                return
            try:
                # The retry line first, so that it is on the disk when the final record of its trial is.
                # TensorBoard's runs, too: whatever cannot be written ends the sweep with the same clear error.
                with refuse_when_full(self._folder.path):
                    self._retries.note(event)
                    self._record(event)
            except Exception as error:
                self.fail(error)
                raise
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Note that no more events will be recorded, and wake the threads that wait for a record."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def record_of(self, trial: int) -> TrialRecord:
        """Return a trial's final record; wait for it while its last event is still on its way.

        Raises:
            RunError: it will never come; see `fail`.
        """
        with self._changed:
            self._changed.wait_for(lambda: trial in self._ended or self._failure is not None)
            if trial not in self._ended:
                raise RunError(f"trial {trial} ended, but that could not be recorded: {self._failure}")
            return self._ended[trial]

    def reports_of(self, trial: int) -> Sequence[Report]:
        """Return the reports of a trial to its stopping rule, those of earlier sessions included."""
        with self._changed:
            return tuple(self._reports.get(trial, ()))

    def _record(self, event: Event) -> None:
        match event:
            case LaneStarted():
                self._folder.add_lane({"lane": event.lane, "group": event.group, "pids": event.pids})
                self._observer.lane_started(event.pids)
            case LaneSilent() | LaneHeard():
                self._lane_silent(event)
            case StepLogged():
                self._step_logged(event)
            case PhaseFinished():
                self._phase_finished(event)
            case PhaseResumed():
                self._observer.phase_resumed(event.trial, event.phase, event.step, event.steps)
            case Reported():
                self._folder.add_report(event.report)
                self._reports.setdefault(event.trial, []).append(event.report)
                self._observer.reported(event.report)
            case ControlFailed():
                self._open[event.trial].control_errors[event.arm] = event.error
            case Warned():
                self._observer.warned(event.trial, event.text)
            case SweepInterrupted():
                self._observer.sweep_interrupted(event.reason)
            case PhaseClaimed() | ClientSilent():
                # The dispatcher answers claims and does not pass them on. Clients are the driver's.
                pass
            case _:
                self._trial_changed(event)

    def _trial_changed(
        self,
        event: TrialRetried | TrialWaiting | TrialReleased | TrialPaused | TrialResumed | TrialLeft | TrialFinished,
    ) -> None:
        match event:
            case TrialRetried():
                self._observer.trial_retried(event.trial, event.attempt)
            case TrialWaiting():
                self._observer.trial_waiting(event.trial, event.phase, event.cycle)
            case TrialReleased():
                self._observer.trial_released(event.trial)
            case TrialPaused():
                self._observer.trial_paused(event.trial)
            case TrialResumed():
                self._observer.trial_resumed(event.trial)
            case TrialLeft():
                self._open.pop(event.trial).writer.close()
                self._left.add(event.trial)
                self._observer.trial_left(event.trial)
            case TrialFinished():
                self._trial_finished(event)
            case _:
                assert_never(event)

    def _lane_silent(self, event: LaneSilent | LaneHeard) -> None:
        self._silent.pop(event.lane, None)
        if isinstance(event, LaneSilent):
            # One that is given up is started anew.
            if not event.lost:
                self._silent[event.lane] = time.time() - event.seconds
            self._observer.lane_silent(event.lane, event.seconds, event.lost)
        else:
            self._observer.lane_heard(event.lane)
        write_silent(self._folder.path, self._silent)

    def _step_logged(self, event: StepLogged) -> None:
        trial, point = self._open[event.trial], event.point
        # A TensorBoard run shows the trial itself: the curves of control arms would be drawn over its own.
        if event.arm == "main":
            trial.writer.progress(event.phase, event.cycle, point)
        self._observer.step_logged(event.trial, event.phase, int(point["step"]), event.steps, point["loss"])

    def _phase_finished(self, event: PhaseFinished) -> None:
        record = PhaseRecord.from_dict(event.record)
        # The archive first: an observer that reacts to the call finds the record there.
        self._folder.add_phase(record)
        trial = self._open[record.trial]
        trial.phases[record.key] = record
        trial.writer.phase(record)
        self._observer.phase_finished(record)

    def _trial_finished(self, event: TrialFinished) -> None:
        trial = self._open.pop(event.trial)
        record = self._final_record(trial, event)
        # On the disk before anybody learns of it: the sampler must never know a result that the archive lacks.
        self._folder.add_trial(record)
        self._ended[record.trial] = record
        trial.writer.finish(record.status, record.objectives)
        self._observer.trial_finished(record)

    def _final_record(self, trial: _OpenTrial, event: TrialFinished) -> TrialRecord:
        own = [record for record in trial.phases.values() if record.arm == "main"]
        outcome = NO_OUTCOME
        # A trial that did not come to its end has no result to compare with others'.
        if event.ending.status == "COMPLETE":
            outcome = objectives.outcome_of(self._search, own, trial.plan.halting)
        halt = outcome.halt
        return TrialRecord(
            trial=trial.plan.trial,
            status=event.ending.status,
            values=trial.proposal.values,
            seed=trial.plan.seed,
            proposer=trial.proposal.proposer,
            of=trial.proposal.of,
            objective=next(iter(outcome.objectives.values()), None),
            objectives=outcome.objectives,
            violations=outcome.violations,
            # Each earlier session counts as one attempt, however many it took.
            attempts=trial.proposal.attempt - 1 + event.attempts,
            # A trial that halted ran none of the later cycles.
            phases=[phase.key for phase in trial.plan.phases if halt is None or phase.cycle <= halt.cycle],
            stopped=event.ending.stopped,
            halted=asdict(halt) if halt else None,
            # An arm goes no further than its trial's result, so it may not have run all of its phases.
            controls={
                arm: [phase.key for phase in phases if phase.key in trial.phases]
                for arm, phases in trial.plan.controls.items()
                if arm not in trial.control_errors
            },
            control_errors=trial.control_errors,
            seconds=round(self._clock() - trial.started, 3),
            error=event.ending.error,
            cluster_fault=event.ending.cluster_fault,
        )
