"""Measure what shared prefixes save: 32 trials with and without sharing, and in the pattern of Ray's documentation.

The baseline, which all trials share, is 60% of a trial's steps. The documentation pattern is measured on a few trials
and scaled: its trials share nothing, so each costs what the others do.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.quickstart import run_documentation_pattern
from benchmarks.reference import figure, write
from raysweep import api
from raysweep.records.folder import SweepFolder

TRIALS = 32
MEASURED_BY_PATTERN = 2
JOB: dict[str, Any] = {
    "name": "sharing",
    "model": {"name": "gpt2-nano"},
    "data": {"name": "python-docs", "seq_len": 64, "eval_tokens": 4096, "probe_windows": 4},
    "training": {"batch_size": 8},
    "cycle": {
        "baseline": {"steps": 180, "lr": 5e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "gradient_sensitivity", "ratio": 0.5},
        "learn": {"steps": 120, "lr": 2.5e-3},
    },
    "search": {"space": "search_spaces/heads.yaml", "trials": TRIALS, "sampler": {"name": "random"}},
    "scale": {"workers": 2},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shared, shared_s = sweep(Path(folder), "shared", sharing=True)
        unshared, unshared_s = sweep(Path(folder), "unshared", sharing=False)
        assert outcomes(shared) == outcomes(unshared), "sharing changed what came of a phase"
        one, few = (
            run_documentation_pattern(Path(folder), shared, trials)
            for trials in ([1], list(range(1, 2 + MEASURED_BY_PATTERN)))
        )
        objectives = [shared.trials()[trial].objective for trial in range(1, 2 + MEASURED_BY_PATTERN)]
        ours = sorted(objective for objective in objectives if objective is not None)
        assert ours == few["losses"], "the two ways of running the same trials disagree"
        shared_steps, unshared_steps = executed_steps(shared), executed_steps(unshared)
    a_trial = (few["seconds"] - one["seconds"]) / MEASURED_BY_PATTERN
    pattern_s = one["seconds"] + (TRIALS - 1) * a_trial
    scaled = f"{pattern_s:.0f} s: {a_trial:.1f} s a trial, measured on {MEASURED_BY_PATTERN} and scaled to {TRIALS}"
    write(
        "sharing",
        [
            figure(
                f"steps executed by {TRIALS} trials / without sharing (equal records)",
                [shared_steps / unshared_steps],
                asked="<= 0.45", unit="x", baseline=f"{unshared_steps:,} steps",
            ),
            figure(
                f"wall time of {TRIALS} trials / Ray's documentation pattern", [shared_s / pattern_s],
                asked="<= 0.2", unit="x", baseline=scaled,
            ),
            figure(
                f"wall time of {TRIALS} trials / without sharing", [shared_s / unshared_s],
                asked="-", unit="x", baseline=f"{unshared_s:.0f} s",
            ),
        ],
    )  # fmt: skip


def sweep(results: Path, name: str, *, sharing: bool) -> tuple[SweepFolder, float]:
    """Run the sweep; return its folder, and its wall time in seconds from call to return."""
    started = time.perf_counter()
    folder = api.run(JOB, name=name, results=results, sharing=sharing)
    assert all(record.status == "COMPLETE" for record in folder.trials().values())
    return folder, time.perf_counter() - started


def outcomes(folder: SweepFolder) -> dict[tuple[int, str], dict[str, Any]]:
    return {(record.trial, record.key): record.outcome() for record in folder.phases()}


def executed_steps(folder: SweepFolder) -> int:
    return sum(record.steps for record in folder.phases() if not record.reused)


if __name__ == "__main__":
    main()
