"""News of a running sweep on stderr: a live line on a terminal, one line per finished trial otherwise."""

from __future__ import annotations

from statistics import median

from rich.console import Console
from rich.status import Status

from raysweep.archive import SweepFolder
from raysweep.jobfile import Job
from raysweep.plan import TrialPlan
from raysweep.records import PhaseRecord, TrialRecord


class Silent:
    """Watches nothing."""

    def sweep_started(self, folder: SweepFolder, job: Job, remaining: int) -> None: ...
    def lane_started(self, pids: list[int]) -> None: ...
    def trial_started(self, plan: TrialPlan) -> None: ...
    def trial_retried(self, trial: int, attempt: int) -> None: ...
    def phase_resumed(self, trial: int, phase: str, step: int, steps: int) -> None: ...
    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None: ...
    def phase_finished(self, record: PhaseRecord) -> None: ...
    def trial_finished(self, record: TrialRecord) -> None: ...


class Progress(Silent):
    """Prints to a console on stderr; use as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self.sweep: str | None = None
        """The sweep's name, once it has one."""
        self._console = console
        self._status: Status | None = None
        self._remaining = self._lanes = 0
        self._finished: list[TrialRecord] = []
        self._running: dict[int, list[str]] = {}
        self._own_seconds: dict[int, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def sweep_started(self, folder: SweepFolder, job: Job, remaining: int) -> None:
        spec = job.spec
        self.sweep = folder.name
        self._remaining, self._lanes = remaining, min(spec.scale.lanes, max(1, remaining))
        trials, lanes = _count(remaining, "trial"), _count(self._lanes, "lane")
        workers = _count(spec.scale.workers, "worker")
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

    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None:
        done = " ".join(self._running[trial])
        self._show(f"trial {trial}: {done} {phase} ▶ {step}/{steps} loss {loss:.3f}{self._estimate()}")

    def phase_finished(self, record: PhaseRecord) -> None:
        mark = "◇" if record.reused else "✓"
        if record.cycle:  # the baseline is shared: later trials do not pay for it again
            self._own_seconds[record.trial] = self._own_seconds.get(record.trial, 0.0) + record.seconds
        self._running.setdefault(record.trial, []).append(f"{record.phase} {mark}")
        self._show(f"trial {record.trial}: {' '.join(self._running[record.trial])}{self._estimate()}")

    def trial_finished(self, record: TrialRecord) -> None:
        self._finished.append(record)
        phases = " ".join(self._running.pop(record.trial, []))
        outcome = (
            f"{record.objective:.4f}" if record.objective is not None else f"{record.status}: {_first(record.error)}"
        )
        best = min((r.objective for r in self._finished if r.objective is not None), default=None)
        so_far = f"   best {best:.4f}" if best is not None else ""
        count = f"{len(self._finished)}/{self._remaining}"
        self._print(
            f"trial {record.trial} ({count})   {phases}   {outcome}{so_far}   {record.seconds:.1f} s{self._estimate()}"
        )

    def _estimate(self) -> str:
        """Time left, from what the finished trials took beyond the baseline."""
        if not self._finished or len(self._finished) >= self._remaining:
            return ""
        typical = median(self._own_seconds.get(record.trial, 0.0) for record in self._finished)
        seconds = typical * (self._remaining - len(self._finished)) / self._lanes
        return f"   about {duration(seconds)} left"

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """Say a duration as a person would."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _first(error: str | None) -> str:
    return (error or "").strip().splitlines()[-1] if error else ""
