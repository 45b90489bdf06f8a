"""Turns the events of a running sweep into records, TensorBoard runs, and news for whoever watches."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from raysweep.archive import Proposal, SweepFolder
from raysweep.jobfile import Job
from raysweep.plan import TrialPlan
from raysweep.records import PhaseRecord, TrialRecord
from raysweep.reports.tensorboard import TrialWriter, write_experiment
from raysweep.retries import RetryLog

Event = dict[str, Any]


class Observer(Protocol):
    """Who is told what happens, as it happens."""

    def sweep_started(self, folder: SweepFolder, job: Job, remaining: int) -> None: ...
    def lane_started(self, pids: list[int]) -> None: ...
    def trial_started(self, plan: TrialPlan) -> None: ...
    def trial_retried(self, trial: int, attempt: int) -> None: ...
    def phase_resumed(self, trial: int, phase: str, step: int, steps: int) -> None: ...
    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None: ...
    def phase_finished(self, record: PhaseRecord) -> None: ...
    def trial_finished(self, record: TrialRecord) -> None: ...


@dataclass(kw_only=True)
class _OpenTrial:
    proposal: Proposal
    plan: TrialPlan
    writer: TrialWriter
    started: float
    finished: set[str] = field(default_factory=set)
    """Keys of its finished phases."""
    control_errors: dict[str, str] = field(default_factory=dict)


class Recorder:
    """Writes the archive of one running sweep. Safe to call from several threads."""

    def __init__(self, folder: SweepFolder, job: Job, observer: Observer) -> None:
        self._folder = folder
        self._observer = observer
        self._open: dict[int, _OpenTrial] = {}
        self._ended: set[int] = set()
        self._lock = threading.Lock()
        self._retries = RetryLog(folder)
        self._tensorboard = folder.path / "tensorboard"
        write_experiment(self._tensorboard, job.space)
        self._space = job.space

    @property
    def open_trials(self) -> int:
        with self._lock:
            return len(self._open)

    def start_trial(self, proposal: Proposal, plan: TrialPlan) -> None:
        with self._lock:
            writer = TrialWriter(self._tensorboard, plan.trial, proposal.values, self._space)
            self._open[plan.trial] = _OpenTrial(
                proposal=proposal, plan=plan, writer=writer, started=time.perf_counter()
            )
            self._observer.trial_started(plan)

    def handle(self, event: Event) -> None:
        """Take in one event of the mailbox."""
        handle = getattr(self, f"_on_{event['type']}")
        with self._lock:
            if event.get("trial") not in self._ended:  # else a worker that was given up for lost still tells of it
                self._retries.note(event)
                handle(event)

    def _on_group(self, event: Event) -> None:
        self._folder.add_lane({name: event[name] for name in ("lane", "group", "pids")})
        self._observer.lane_started(event["pids"])

    def _on_retry(self, event: Event) -> None:
        self._observer.trial_retried(event["trial"], event["attempt"])

    def _on_resumed(self, event: Event) -> None:
        self._observer.phase_resumed(event["trial"], event["phase"], event["step"], event["steps"])

    def _on_control_failed(self, event: Event) -> None:
        self._open[event["trial"]].control_errors[event["arm"]] = event["error"]

    def _on_progress(self, event: Event) -> None:
        trial = self._open[event["trial"]]
        if event["arm"] == "main":
            trial.writer.progress(event["phase"], event["cycle"], event["point"])
        point = event["point"]
        self._observer.step_logged(event["trial"], event["phase"], int(point["step"]), event["steps"], point["loss"])

    def _on_phase(self, event: Event) -> None:
        record = PhaseRecord.from_dict(event["record"])
        self._folder.add_phase(record)
        self._open[record.trial].finished.add(record.key)
        self._open[record.trial].writer.phase(record)
        self._observer.phase_finished(record)

    def _on_final(self, event: Event) -> None:
        trial = self._open.pop(event["trial"])
        self._ended.add(event["trial"])
        halted = event.get("halted")
        record = TrialRecord(
            trial=event["trial"],
            status=event["status"],
            values=trial.proposal.values,
            seed=trial.plan.seed,
            proposer=trial.proposal.proposer,
            objective=event["objective"],
            attempts=trial.proposal.attempt - 1 + event["attempts"],
            phases=[phase.key for phase in trial.plan.phases if not halted or phase.cycle <= halted["cycle"]],
            halted=halted,
            controls={
                arm: [phase.key for phase in phases if phase.key in trial.finished]
                for arm, phases in trial.plan.controls.items()
                if arm not in trial.control_errors
            },
            control_errors=trial.control_errors,
            seconds=round(time.perf_counter() - trial.started, 3),
            error=event["error"],
        )
        self._folder.add_trial(record)
        trial.writer.finish(record.status, record.objective)
        self._observer.trial_finished(record)
