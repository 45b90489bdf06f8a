"""Turns the events of a running sweep into records, TensorBoard runs, and news for whoever watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raysweep.contracts import Report
from raysweep.errors import RunError
from raysweep.job.jobfile import Job
from raysweep.job.plan import TrialPlan
from raysweep.records import objectives
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord, Proposal, TrialRecord
from raysweep.reports.tensorboard.hparams import write_experiment
from raysweep.reports.tensorboard.writer import NoWriter, TrialWriter
from raysweep.sweep.observer import Observer
from raysweep.sweep.retries import RetryLog

Event = dict[str, Any]


NOTHING = objectives.Outcome(objectives={}, violations={}, halt=None)


@dataclass(kw_only=True)
class _OpenTrial:
    proposal: Proposal
    plan: TrialPlan
    writer: TrialWriter | NoWriter
    started: float
    phases: dict[str, PhaseRecord] = field(default_factory=dict)
    """Its finished phases by key, in order; each attempt tells of all that it finds finished, too."""
    control_errors: dict[str, str] = field(default_factory=dict)


class Recorder:
    """Writes the archive of one running sweep. Safe to call from several threads.

    Args:
        clock: tells the time in seconds.
        tensorboard: whether trials leave TensorBoard runs, too.
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
        self._reports = {trial: list(reports) for trial, reports in folder.reports().items()}
        self._retries = RetryLog(folder, job.spec.scale.checkpoint_every_steps)
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._clock = clock
        self._tensorboard = folder.path / "tensorboard" if tensorboard else None
        if self._tensorboard is not None:
            write_experiment(self._tensorboard, job.space)

    @property
    def open_trials(self) -> int:
        with self._changed:
            return len(self._open)

    def start_trial(self, proposal: Proposal, plan: TrialPlan) -> None:
        """Open the record of a trial that is about to run; one that was paused goes on with its own."""
        with self._changed:
            self._left.discard(plan.trial)
            if plan.trial not in self._open:
                self._open[plan.trial] = _OpenTrial(
                    proposal=proposal, plan=plan, writer=self._writer(proposal), started=self._clock()
                )
            self._observer.trial_started(plan)

    def _writer(self, proposal: Proposal) -> TrialWriter | NoWriter:
        if self._tensorboard is None:
            return NoWriter()
        return TrialWriter(self._tensorboard, proposal.trial, proposal.values, self._space)

    def handle(self, event: Event) -> None:
        """Take in one event of the sweep."""
        handle = getattr(self, f"_on_{event['type']}")
        with self._changed:
            # A worker that was given up for lost may still tell of a trial that is over.
            if event.get("trial") in self._ended or event.get("trial") in self._left:
                return
            try:
                self._retries.note(event)
                handle(event)
            except Exception as error:
                self.fail(error)
                raise
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Take note that no more events will be recorded: whoever waits for one must not wait for ever."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def record_of(self, trial: int) -> TrialRecord:
        """Return a trial's final record; wait for it where its last event is still on its way.

        Raises:
            RunError: it will never come; see `fail`.
        """
        with self._changed:
            self._changed.wait_for(lambda: trial in self._ended or self._failure is not None)
            if trial not in self._ended:
                raise RunError(f"trial {trial} ended, but that could not be recorded: {self._failure}")
            return self._ended[trial]

    def reports_of(self, trial: int) -> Sequence[Report]:
        """Return what a trial has reported to its stopping rule, in earlier sessions too."""
        with self._changed:
            return tuple(self._reports.get(trial, ()))

    def _on_group(self, event: Event) -> None:
        self._folder.add_lane({name: event[name] for name in ("lane", "group", "pids")})
        self._observer.lane_started(event["pids"])

    def _on_warning(self, event: Event) -> None:
        self._observer.warned(event["trial"], event["text"])

    def _on_retry(self, event: Event) -> None:
        self._observer.trial_retried(event["trial"], event["attempt"])

    def _on_resumed(self, event: Event) -> None:
        self._observer.phase_resumed(event["trial"], event["phase"], event["step"], event["steps"])

    def _on_control_failed(self, event: Event) -> None:
        self._open[event["trial"]].control_errors[event["arm"]] = event["error"]

    def _on_parked(self, event: Event) -> None:
        self._observer.trial_waiting(event["trial"], event["phase"], event["cycle"])

    def _on_released(self, event: Event) -> None:
        self._observer.trial_released(event["trial"])

    def _on_paused(self, event: Event) -> None:
        self._observer.trial_paused(event["trial"])

    def _on_resumed_by_rule(self, event: Event) -> None:
        self._observer.trial_resumed(event["trial"])

    def _on_left(self, event: Event) -> None:
        """Let go of a trial that another session will take up."""
        self._open.pop(event["trial"]).writer.close()
        self._left.add(event["trial"])
        self._observer.trial_left(event["trial"])

    def _on_interrupted(self, event: Event) -> None:
        self._observer.sweep_interrupted(event["reason"])

    def _on_report(self, event: Event) -> None:
        report = Report(**event["report"])
        self._folder.add_report(report)
        self._reports.setdefault(report.trial, []).append(report)
        self._observer.reported(report)

    def _on_progress(self, event: Event) -> None:
        trial = self._open[event["trial"]]
        if event["arm"] == "main":
            trial.writer.progress(event["phase"], event["cycle"], event["point"])
        point = event["point"]
        self._observer.step_logged(event["trial"], event["phase"], int(point["step"]), event["steps"], point["loss"])

    def _on_phase(self, event: Event) -> None:
        record = PhaseRecord.from_dict(event["record"])
        self._folder.add_phase(record)
        trial = self._open[record.trial]
        trial.phases[record.key] = record
        trial.writer.phase(record)
        self._observer.phase_finished(record)

    def _on_final(self, event: Event) -> None:
        trial = self._open.pop(event["trial"])
        record = self._final_record(trial, event)
        self._folder.add_trial(record)
        self._ended[record.trial] = record
        trial.writer.finish(record.status, record.objectives)
        self._observer.trial_finished(record)

    def _final_record(self, trial: _OpenTrial, event: Event) -> TrialRecord:
        own = [record for record in trial.phases.values() if record.arm == "main"]
        outcome = NOTHING
        if event["status"] == "COMPLETE":
            outcome = objectives.judge(self._search, own, trial.plan.halting)
        halt = outcome.halt
        return TrialRecord(
            trial=trial.plan.trial,
            status=event["status"],
            values=trial.proposal.values,
            seed=trial.plan.seed,
            proposer=trial.proposal.proposer,
            of=trial.proposal.of,
            objective=next(iter(outcome.objectives.values()), None),
            objectives=outcome.objectives,
            violations=outcome.violations,
            attempts=trial.proposal.attempt - 1 + event["attempts"],
            phases=[phase.key for phase in trial.plan.phases if halt is None or phase.cycle <= halt.cycle],
            stopped=event.get("stopped"),
            halted=asdict(halt) if halt else None,
            controls={
                arm: [phase.key for phase in phases if phase.key in trial.phases]
                for arm, phases in trial.plan.controls.items()
                if arm not in trial.control_errors
            },
            control_errors=trial.control_errors,
            seconds=round(self._clock() - trial.started, 3),
            error=event["error"],
        )
