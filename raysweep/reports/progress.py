"""News of a running sweep on stderr: a live line on a terminal, one line per finished trial otherwise."""

from __future__ import annotations

from statistics import median

from rich.console import Console
from rich.status import Status
from rich.text import Text

from raysweep import objectives
from raysweep.archive import SweepFolder
from raysweep.contracts import Report
from raysweep.jobfile import Job
from raysweep.plan import TrialPlan
from raysweep.records import PhaseRecord, TrialRecord
from raysweep.reports.summary import label


class Silent:
    """Watches nothing."""

    def sweep_started(self, folder: SweepFolder, job: Job, remaining: int) -> None: ...
    def lane_started(self, pids: list[int]) -> None: ...
    def trial_started(self, plan: TrialPlan) -> None: ...
    def trial_retried(self, trial: int, attempt: int) -> None: ...
    def trial_waiting(self, trial: int, phase: str, cycle: int) -> None: ...
    def trial_released(self, trial: int) -> None: ...
    def trial_paused(self, trial: int) -> None: ...
    def trial_resumed(self, trial: int) -> None: ...
    def trial_left(self, trial: int) -> None: ...
    def sweep_interrupted(self, reason: str) -> None: ...
    def phase_resumed(self, trial: int, phase: str, step: int, steps: int) -> None: ...
    def warned(self, trial: int, text: str) -> None: ...
    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None: ...
    def reported(self, report: Report) -> None: ...
    def phase_finished(self, record: PhaseRecord) -> None: ...
    def trial_finished(self, record: TrialRecord) -> None: ...


class Progress(Silent):
    """Prints to a console on stderr; use as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self.sweep: str | None = None
        """The sweep's name, once it has one."""
        self._console = console
        self._status: Status | None = None
        self._metric = ""
        self._remaining = self._lanes = 0
        self._best: tuple[float, int] | None = None
        """Lowest objective so far, and its trial."""
        self._running: dict[int, list[str]] = {}
        self._seconds: dict[int, float] = {}
        """What each running trial took so far."""
        self._finished: list[float] = []
        """What each finished trial took."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def sweep_started(self, folder: SweepFolder, job: Job, remaining: int) -> None:
        spec = job.spec
        self.sweep = folder.name
        self._metric = objectives.names(spec.search)[0]
        self._remaining, self._lanes = remaining, min(spec.scale.lanes, max(1, remaining))
        earlier = folder.trials()
        for record in earlier.values():
            self._keep_best(record)
        trials = count(remaining, "trial") + (" left" if earlier else "")
        lanes, workers = count(self._lanes, "lane"), count(spec.scale.workers, "worker")
        self._print(f"{folder.name}   {trials} on {lanes} of {workers}   {spec.data.name}   {spec.model.name}")
        if self._console.is_terminal:
            self._status = self._console.status("starting workers")
            self._status.start()

    def lane_started(self, pids: list[int]) -> None:
        self._print(f"workers ready: {len(pids)} processes")

    def trial_started(self, plan: TrialPlan) -> None:
        self._running[plan.trial] = []

    def trial_retried(self, trial: int, attempt: int) -> None:
        self._running[trial] = []
        self._print(f"trial {trial}: its workers were lost; attempt {attempt} goes on from its last checkpoint")

    def phase_resumed(self, trial: int, phase: str, step: int, steps: int) -> None:
        self._print(f"trial {trial}: {phase} goes on from step {step} of {steps}")

    def warned(self, trial: int, text: str) -> None:
        self._print(f"trial {trial}: warning: {text}")

    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None:
        done = "".join(f"{name} " for name in self._running[trial])
        self._show(f"trial {trial}: {done}{phase} ▶ {step}/{steps} loss {loss:.3f}{self._time_left()}")

    def phase_finished(self, record: PhaseRecord) -> None:
        if record.cycle or self._finished:  # the baseline of the first trials is what later ones reuse
            self._seconds[record.trial] = self._seconds.get(record.trial, 0.0) + record.seconds
        done = self._running.setdefault(record.trial, [])
        arm = "" if record.arm == "main" else f"{record.arm}:"
        done.append(f"{arm}{label(record)} {'◇' if record.reused else '✓'}")
        self._show(f"trial {record.trial}: {' '.join(done)}{self._time_left()}")

    def trial_finished(self, record: TrialRecord) -> None:
        self._finished.append(self._seconds.pop(record.trial, 0.0))
        self._keep_best(record)
        parts = [
            f"trial {record.trial} ({len(self._finished)}/{self._remaining})",
            " ".join(self._running.pop(record.trial, [])),
            self._outcome(record),
            f"best {self._best[0]:.4f} (trial {self._best[1]})" if self._best else "",
            f"{record.seconds:.1f} s",
        ]
        self._print("   ".join(filter(None, parts)) + self._time_left())
        self._show(f"{len(self._finished)} of {count(self._remaining, 'trial')} ended{self._time_left()}")

    def _keep_best(self, record: TrialRecord) -> None:
        if record.status == "COMPLETE" and record.objective is not None:
            found = (record.objective, record.trial)
            self._best = min(self._best or found, found)

    def _outcome(self, record: TrialRecord) -> str:
        if record.status == "COMPLETE":
            return f"{self._metric} {record.objective:.4f}"
        return f"{record.status}: {record.error.strip().splitlines()[-1]}" if record.error else record.status

    def _time_left(self) -> str:
        """Say how long the rest will take, from what the finished trials took."""
        if not self._finished or len(self._finished) >= self._remaining:
            return ""
        seconds = median(self._finished) * (self._remaining - len(self._finished)) / self._lanes
        return f"   about {duration(seconds)} left"

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(Text(text))

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def duration(seconds: float) -> str:
    """Say a duration as a person would."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    """Say how many there are of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
