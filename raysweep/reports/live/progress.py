"""Report the progress of a sweep on stderr: a line for each finished trial, on a terminal a live table of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from raysweep.contracts import Report
from raysweep.job.jobfile import Job
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import JobSpec
from raysweep.records import objectives
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord, TrialRecord
from raysweep.reports.live.rows import Row, live_table
from raysweep.reports.wording import count, duration, silent_lane


class Silent:
    """An observer that ignores every event."""

    def code_changed(self, changes: Sequence[str]) -> None: ...
    def mended(self, done: Sequence[str]) -> None: ...
    def sweep_started(self, folder: SweepFolder, job: Job, remaining: int) -> None: ...
    def lane_started(self, pids: list[int]) -> None: ...
    def lane_silent(self, lane: str, seconds: float, lost: bool) -> None: ...
    def lane_heard(self, lane: str) -> None: ...
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
    """An observer that prints to a console. Used as a context manager, it ends its live table with the run."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.sweep: str | None = None
        """The sweep's name, once it has one."""
        self._console, self._clock = console, clock
        self._live: Live | None = None
        self._spec: JobSpec | None = None
        self._metric = ""
        self._remaining = self._lanes = 0
        self._best: tuple[float, int] | None = None
        """The lowest objective so far, and its trial."""
        self._silent: dict[str, float] = {}
        """Silent lanes, and when each was last heard of, by the clock."""
        self._rows: dict[int, Row] = {}
        """Trials that have begun and not ended, by number."""
        self._finished: list[float] = []
        """Seconds that each finished trial took."""
        self._flops: dict[tuple[int, str], float] = {}
        """Training FLOPs by trial and phase key that were executed, in earlier sessions too."""
        self._began = self._seconds_before = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def code_changed(self, changes: Sequence[str]) -> None:
        self._print(f"going on with other code; changed since the sweep began: {', '.join(changes)}")

    def mended(self, done: Sequence[str]) -> None:
        for text in done:
            self._print(text)

    def sweep_started(self, folder: SweepFolder, job: Job, remaining: int) -> None:
        spec = self._spec = job.spec
        self.sweep = folder.name
        # Of several objectives the first stands for a trial, as in TensorBoard's table.
        self._metric = objectives.names(spec.search)[0]
        self._remaining, self._lanes = remaining, min(spec.scale.lanes, max(1, remaining))
        # A resumed sweep goes on with the best trial, the FLOPs and the time of its earlier sessions.
        earlier = folder.trials()
        for record in earlier.values():
            self._keep_best(record)
        for phase in folder.phases(stop="curve"):
            self._count_flops(phase)
        self._seconds_before = sum(session.seconds for session in folder.sessions())
        self._began = self._clock()
        # What its space does to sharing, said before hours go into it.
        for text in job.warnings:
            self._print(f"note: {text}")
        trials = count(remaining, "trial") + (" left" if earlier else "")
        lanes, workers = count(self._lanes, "lane"), count(spec.scale.workers, "worker")
        self._print(f"{folder.name}   {trials} on {lanes} of {workers}   {spec.data.name}   {spec.model.name}")
        # Where stderr is a file, the lines of finished trials are all that is worth keeping.
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, transient=True)
            self._live.start()

    def lane_started(self, pids: list[int]) -> None:
        self._print(f"lane ready ({count(len(pids), 'worker')})")

    def lane_silent(self, lane: str, seconds: float, lost: bool) -> None:
        self._silent[lane] = self._clock() - seconds
        if lost:
            del self._silent[lane]
            self._print(f"{silent_lane(lane, seconds)}: it is ended and started anew")

    def lane_heard(self, lane: str) -> None:
        self._silent.pop(lane, None)

    def trial_started(self, plan: TrialPlan) -> None:
        if plan.trial in self._rows:  # it was paused, and keeps the phases that it has done
            self._rows[plan.trial].go_on()
        else:
            self._rows[plan.trial] = Row.of(plan)

    def trial_retried(self, trial: int, attempt: int) -> None:
        self._row(trial).lose_workers(attempt)
        self._print(f"trial {trial}: its workers were lost; attempt {attempt} resumes from its last checkpoint")

    def trial_waiting(self, trial: int, phase: str, cycle: int) -> None:
        self._row(trial).wait(phase, cycle)

    def trial_released(self, trial: int) -> None:
        self._row(trial).go_on()

    def trial_paused(self, trial: int) -> None:
        self._row(trial).pause()

    def trial_resumed(self, trial: int) -> None:
        self._row(trial).go_on()

    def trial_left(self, trial: int) -> None:
        self._rows.pop(trial, None)

    def sweep_interrupted(self, reason: str) -> None:
        self._print(f"stopping: {reason}")

    def phase_resumed(self, trial: int, phase: str, step: int, steps: int) -> None:
        self._print(f"trial {trial}: {phase} resumes at step {step} of {steps}")

    def warned(self, trial: int, text: str) -> None:
        self._print(f"trial {trial}: {text}")

    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None:
        self._row(trial).log(phase, step, steps, loss)

    def reported(self, report: Report) -> None:
        self._row(report.trial).report(report)

    def phase_finished(self, record: PhaseRecord) -> None:
        row = self._row(record.trial)
        # Left out is the baseline of the first trials, which later ones reuse: it would make the rest look longer.
        if record.cycle or self._finished:
            row.seconds += record.seconds
        self._count_flops(record)
        row.finish(record)

    def trial_finished(self, record: TrialRecord) -> None:
        # A trial that ended before any of its events came through has no row yet.
        row = self._rows.pop(record.trial, Row(trial=record.trial))
        self._finished.append(row.seconds)
        self._keep_best(record)
        parts = [
            f"trial {record.trial} ({len(self._finished)}/{self._remaining})",
            row.ticks(),
            self._outcome(record),
            self._best_so_far(),
            f"{record.seconds:.1f} s",
            self._time_left(),
        ]
        self._print("   ".join(filter(None, parts)))

    def _row(self, trial: int) -> Row:
        return self._rows.setdefault(trial, Row(trial=trial))

    def _count_flops(self, record: PhaseRecord) -> None:
        # Set, not added: a later attempt reports its finished phases again, and they are still the same work.
        if not record.reused:
            self._flops[record.trial, record.key] = record.training_flops

    def _keep_best(self, record: TrialRecord) -> None:
        if record.status == "COMPLETE" and record.objective is not None and objectives.feasible(record.violations):
            # As a pair: of equal objectives the first trial stays the best.
            found = (record.objective, record.trial)
            self._best = min(self._best or found, found)

    def _outcome(self, record: TrialRecord) -> str:
        if record.status == "COMPLETE":
            missed = "" if objectives.feasible(record.violations) else " (misses a constraint)"
            return f"{self._metric} {record.objective:.4f}{missed}"
        # The last line of a traceback is the exception; `raysweep show` prints all of it.
        why = record.error.strip().splitlines()[-1] if record.error else record.stopped
        return f"{record.status}: {why}" if why else record.status

    def _best_so_far(self) -> str:
        return f"best {self._best[0]:.4f} (trial {self._best[1]})" if self._best else ""

    def _time_left(self) -> str:
        """Estimate how long the rest takes from the trials that have finished."""
        if not self._finished or len(self._finished) >= self._remaining:
            return ""
        # The median: a trial that stopped early or waited for another one says little about the rest.
        seconds = median(self._finished) * (self._remaining - len(self._finished)) / self._lanes
        return f"about {duration(seconds)} left"

    def _table(self) -> RenderableType:
        """Draw the running trials; Rich calls it from a thread of its own, a few times a second."""
        # Until the first trial begins, Ray starts the workers and these load torch.
        begun = self._rows or self._finished
        ended = f"{len(self._finished)} of {count(self._remaining, 'trial')} ended" if begun else "starting workers"
        silent = [silent_lane(lane, self._clock() - since) for lane, since in list(self._silent.items())]
        summary = [*silent, ended, self._best_so_far(), self._cost(), self._time_left()]
        # A copy of the rows: the thread of the sweep may add one in the meantime.
        return live_table(list(self._rows.values()), summary, self._console.height)

    def _cost(self) -> str:
        """Say how much time and FLOPs all sessions of the sweep have used, and of which budget."""
        assert self._spec is not None
        budget, seconds = self._spec.budget, self._seconds_before + self._clock() - self._began
        of_hours = f" of {budget.hours:g} h" if budget.hours else ""
        of_flops = f" of {budget.flops:.3g}" if budget.flops else ""
        return f"{duration(seconds)}{of_hours}, {sum(list(self._flops.values())):.3g}{of_flops} training FLOPs"

    def _print(self, text: str) -> None:
        # As Text: an error message may hold brackets, which Rich would read as markup.
        self._console.print(Text(text), soft_wrap=True)
