"""Measure the time of a trial outside its phases, on a warm lane and in a Ray Train run of its own."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.reference import figure, write
from raysweep import api
from raysweep.records.schema import PhaseRecord, TrialRecord
from raysweep.reports.live.progress import Silent

JOB: dict[str, Any] = {
    "name": "overhead",
    "model": {"name": "gpt2-nano"},
    "data": {"name": "python-docs", "seq_len": 32, "eval_tokens": 1024, "probe_windows": 4},
    "training": {"batch_size": 4},
    "cycle": {
        "baseline": {"steps": 20, "lr": 1e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "gradient_sensitivity", "ratio": 0.5},
        "learn": {"steps": 20, "lr": 1e-3},
    },
    "search": {"space": {"cycle.learn.new_head_lr_multiplier": {"uniform": [1.0, 5.0]}}, "trials": 1},
    "scale": {"workers": 2},
}


class Stopwatch(Silent):
    """Measures the time from the end of one trial to that of the next, and the share of its phases."""

    def __init__(self) -> None:
        self.finished: list[tuple[int, float]] = []
        self.in_phases: dict[int, float] = defaultdict(float)

    def phase_finished(self, record: PhaseRecord) -> None:
        self.in_phases[record.trial] += record.seconds

    def trial_finished(self, record: TrialRecord) -> None:
        assert record.status == "COMPLETE", record.error
        self.finished.append((record.trial, time.perf_counter()))

    def overheads(self) -> list[float]:
        """Seconds beyond the phases, of every trial but the first (which waits for Ray itself)."""
        pairs = zip(self.finished, self.finished[1:], strict=False)
        return [end - start - self.in_phases[trial] for (_, start), (trial, end) in pairs]


def main() -> None:
    lane, lane_groups = sweep("lane", trials=21)
    process, process_groups = sweep("process", trials=5)
    write(
        "trial_overhead",
        [
            figure(
                "overhead per trial after the lane is up (end to end minus phases)",
                lane, asked="<= 0.5", unit="s", baseline="isolation: process, below",
            ),
            figure(
                "overhead per trial, a fresh Ray Train run each", process,
                asked="(tens of seconds expected)", unit="s", baseline="isolation: lane, above",
            ),
            figure("worker groups started by 21 trials on one lane", [lane_groups], asked="1", unit="", baseline="-"),
            figure("worker groups started by 5 isolated trials", [process_groups], asked="5", unit="", baseline="-"),
        ],
    )  # fmt: skip


def sweep(isolation: str, trials: int) -> tuple[list[float], float]:
    stopwatch = Stopwatch()
    job = {**JOB, "scale": {**JOB["scale"], "isolation": isolation}}
    with tempfile.TemporaryDirectory() as folder:
        done = api.run(job, trials=trials, results=Path(folder), observer=stopwatch)
        return stopwatch.overheads(), float(len(done.lanes()))


if __name__ == "__main__":
    main()
