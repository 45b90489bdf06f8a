"""Kill the driver of a sweep (SIGKILL) at random moments, resume it, and count what was lost or repeated.

The kills come at random moments of the sweep's own progress: a second counts only while workers are up. Nothing but
`raysweep run`, `raysweep resume` and SIGKILL is used; the workers must see for themselves that their driver has gone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.reference import figure, write
from raysweep.job.yamlfile import dump_mapping
from raysweep.records.folder import SweepFolder
from raysweep.sweep.invariants import check

KILLS = 20
SEED = 1
AT_MOST_S = 10.0
"""Seconds of work between two kills."""
PATIENCE_S = 300.0
JOB: dict[str, Any] = {
    "name": "killed",
    "model": {"name": "gpt2-nano"},
    "data": {"name": "python-docs", "seq_len": 32, "eval_tokens": 512, "probe_windows": 2},
    "training": {"batch_size": 4},
    "cycle": {
        "baseline": {"steps": 60, "lr": 5e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "gradient_sensitivity", "ratio": 0.5},
        "learn": {"steps": 30, "lr": 2.5e-3},
    },
    "search": {"space": "search_spaces/heads.yaml", "trials": 24},
    "scale": {"checkpoint_every_steps": 10},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        results, job = Path(scratch), Path(scratch) / "job.yaml"
        job.write_text(dump_mapping(JOB), encoding="utf-8")
        whole, killed = SweepFolder(results / "whole"), SweepFolder(results / "killed")
        run("run", str(job), "--name", whole.name, results=results)
        kills = kill_again_and_again(killed, job, results)
        run("resume", killed.name, results=results)
        differ = differences(killed, whole)
        broken = check(killed) + check(whole)
        repeated = len((killed.path / "trials.jsonl").read_text().splitlines()) - len(killed.trials())
    for text in broken:
        print(f"invariant broken: {text}", file=sys.stderr)
    write(
        "kill_loop",
        [
            figure("drivers killed", [kills], asked=str(KILLS), unit="kills", baseline="-"),
            figure("trials lost, repeated or different", [differ + repeated], asked="0", unit="trials",
                   baseline="the same sweep, undisturbed"),
            figure("invariants broken", [len(broken)], asked="0", unit="invariants", baseline="-"),
        ],
    )  # fmt: skip


def command(*arguments: str, results: Path) -> list[str]:
    return [sys.executable, "-m", "raysweep", *arguments, "--results", str(results)]


def run(*arguments: str, results: Path) -> None:
    subprocess.run(command(*arguments, results=results), check=True, stdin=subprocess.DEVNULL)


def kill_again_and_again(folder: SweepFolder, job: Path, results: Path) -> int:
    """Start or resume the sweep and kill its driver, until that has been done often enough; return how often."""
    moments = random.Random(SEED)
    for kill in range(KILLS):
        begun = (folder.path / "job.yaml").is_file()
        arguments = ("resume", folder.name) if begun else ("run", str(job), "--name", folder.name)
        groups = len(folder.lanes()) if begun else 0
        driver = subprocess.Popen(command(*arguments, results=results), stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while driver.poll() is None and len(folder.lanes()) == groups:
            assert time.monotonic() < deadline, "no workers came up"
            time.sleep(0.1)
        time.sleep(moments.uniform(0, AT_MOST_S))
        if driver.poll() is not None:
            print(f"the sweep ended before kill {kill + 1}", file=sys.stderr)
            return kill
        family = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
        assert not alive, f"left over: {alive}"
        print(f"kill {kill + 1}: {len(folder.trials())} trials had ended", file=sys.stderr)
    return KILLS


def differences(folder: SweepFolder, reference: SweepFolder) -> int:
    """Return the number of trials that differ between two sweeps in values, end or outcome of a phase."""
    ours, theirs = described(folder), described(reference)
    return sum(ours.get(trial) != theirs.get(trial) for trial in ours.keys() | theirs.keys())


def described(folder: SweepFolder) -> dict[int, Any]:
    outcomes: dict[int, Any] = {}
    for record in folder.phases():
        outcomes.setdefault(record.trial, {})[record.key] = record.outcome()
    return {
        trial: (record.status, record.values, record.objectives, record.phases, outcomes[trial])
        for trial, record in folder.trials().items()
    }


if __name__ == "__main__":
    main()
