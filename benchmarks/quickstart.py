"""Compare the wall time of the quickstart with that of its trials in the pattern of Ray's documentation."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reference import figure, write
from raysweep.job.plan import make_plan
from raysweep.records.folder import SweepFolder
from raysweep.trial.forecast.preflight import preflight

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds, together_gb = run_quickstart(Path(folder))
        sweep = SweepFolder(Path(folder) / "quickstart-1")
        pattern = run_documentation_pattern(Path(folder), sweep, list(sweep.proposals()))
        ours = sorted(record.objective for record in sweep.trials().values() if record.objective is not None)
        assert ours == pattern["losses"], "the two ways of running the same trials disagree"
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    write(
        "quickstart",
        [
            figure("wall time of `raysweep run`", [seconds], asked="< 180", unit="s", baseline="-"),
            figure(
                "wall time / the same 8 trials by Ray's documentation pattern (equal losses)",
                [seconds / pattern["seconds"]],
                asked="<= 0.333", unit="x", baseline=f"{pattern['seconds']:.1f} s",
            ),
            figure("largest single process", [peak_gb], asked="(all together < 4)", unit="GB", baseline="-"),
            figure("all processes together, at most", [together_gb], asked="< 4", unit="GB", baseline="-"),
        ],
    )  # fmt: skip


def run_quickstart(results: Path) -> tuple[float, float]:
    """Return its wall time in seconds, and the most memory that all its processes held at once, in GB."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "raysweep", "run", "--results", str(results), "--yes"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, proportional_memory_gb(process.pid))
        time.sleep(0.5)
    assert process.returncode == 0
    return time.perf_counter() - started, peak


def proportional_memory_gb(root: int) -> float:
    """Sum the proportional set sizes (shared pages divided among their users) of a process and its descendants."""
    import psutil

    total = 0
    try:
        family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for member in family:
        try:
            total += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 1e9


def run_documentation_pattern(folder: Path, sweep: SweepFolder, trials: Sequence[int]) -> dict[str, Any]:
    """Run some trials of a sweep once more, by Ray's documentation pattern; return its seconds and the losses."""
    job, proposals = sweep.job(), sweep.proposals()
    marks = preflight(job)
    plans = [
        make_plan(job.with_values(p.values), p.values, trial=p.trial, fingerprints=marks).to_json()
        for p in map(proposals.__getitem__, trials)
    ]
    given = folder / "plans.json"
    given.write_text(json.dumps({"plans": plans, "workers": job.spec.scale.workers}), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.documentation_pattern", str(given)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    done = subprocess.run(command, cwd=REPOSITORY, env=clean, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
