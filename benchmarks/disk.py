"""Say what checkpoints of 64 trials of GPT-2 take at most, and measure a small sweep against the same arithmetic."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.reference import figure, write
from raysweep import api
from raysweep.job.jobfile import load_job
from raysweep.job.plan import Fingerprints
from raysweep.job.spec import ScaleSpec
from raysweep.records import disk
from raysweep.trial.forecast.disk import Model, peak_bytes
from raysweep.trial.forecast.estimate import drawn, plans_of

TRIALS = 64
GPT2 = Model(parameters=124_439_808, heads=144, head_parameters=4 * 768 * 64 + 3 * 64)
"""GPT-2 of 124 M parameters: 12 layers of 12 heads of 64, and the biases of a head's queries, keys and values."""
LOOK_S = 0.005
JOB: dict[str, Any] = {
    "name": "disk",
    "model": {"name": "gpt2-nano"},
    "data": {"name": "python-docs", "seq_len": 64, "eval_tokens": 2048, "probe_windows": 4},
    "training": {"batch_size": 8},
    "cycle": {
        "baseline": {"steps": 40, "lr": 5e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "balanced", "ratio": 0.5},
        "learn": {"steps": 40, "lr": 2.5e-3},
    },
    "search": {
        "space": {"cycle.learn.lr": {"log_uniform": [1e-3, 5e-3]}, "cycle.prune.level": {"choice": [0.2, 0.4]}},
        "trials": TRIALS,
        "sampler": {"name": "random"},
    },
    "scale": {"checkpoint_every_steps": 10},
}
SMALL = 8
"""Trials of the sweep that is measured."""


def main() -> None:
    figures = [
        figure(
            f"checkpoints of {TRIALS} GPT-2 trials at their most, scale.keep = {keep}, scale.lanes = {lanes}",
            [_gpt2(keep, lanes) / 1e9],
            asked="<= 40" if (keep, lanes) == ("results", 2) else "-",
            unit="GB",
            baseline=f"{_gpt2('all', lanes) / 1e9:.1f} GB with scale.keep = all",
        )  # fmt: skip
        for keep, lanes in (("results", 2), ("results", 8), ("best", 8))
    ]
    with tempfile.TemporaryDirectory() as folder:
        measured, planned = _small(Path(folder))
    figures.append(
        figure(
            f"most that the checkpoints of {SMALL} small trials took / what plan says",
            [measured / planned],
            asked="0.95 to 1.05",
            unit="x",
            baseline=f"{planned / 1e6:.1f} MB planned",
        )  # fmt: skip
    )
    write("disk", figures)


def _gpt2(keep: Any, lanes: int) -> int:
    # Plans do not depend on the size of the model: those of the small one stand for GPT-2's.
    job = load_job(JOB)
    plans = list(plans_of(job, Fingerprints(model="m", data="d"), drawn(job)))
    scale = ScaleSpec(keep=keep, lanes=lanes, checkpoint_every_steps=10)
    return peak_bytes(plans, scale, GPT2, sharing=True)


def _small(results: Path) -> tuple[int, int]:
    """Return the most that a sweep's checkpoints took, and what plan says."""
    _, estimate = api.plan(JOB, trials=SMALL, results=results)
    assert estimate.trials == SMALL
    largest, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(LOOK_S):
            largest[0] = max(largest[0], disk.size(results / "disk" / "checkpoints"))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        api.run(JOB, trials=SMALL, name="disk", results=results)
    finally:
        done.set()
        watcher.join()
    return largest[0], estimate.disk_bytes


if __name__ == "__main__":
    main()
