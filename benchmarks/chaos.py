"""Kill (SIGKILL) or stop (SIGSTOP) each process of a sweep at each moment, go on, and compare with the calm sweep.

Each cell of the table is a sweep of its own, with a Ray of its own: a process is hit once, the command is waited for,
and where it ended before the sweep did, the sweep is resumed. `--only "SIGKILL lane learn"` runs the cells that have
all of these words. What was measured is kept in results/chaos_cells.json for the same commit; `--anew` forgets it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.kill_loop import command, differences
from benchmarks.reference import figure, write
from raysweep.cluster.local_ray import end_session, members
from raysweep.job.yamlfile import dump_mapping
from raysweep.records.environment import commit
from raysweep.records.folder import SweepFolder
from raysweep.records.machine import PROC, stat_of
from raysweep.sweep.invariants import check

SIGNALS = ("SIGKILL", "SIGSTOP")
VICTIMS: dict[str, str | tuple[str, ...]] = {
    "worker": "ray::RayTrainWorker",
    # The controller of Ray Train runs in the lane's actor.
    "lane": "ray::Lane",
    "client": ("ray::TrialClient", "ray::ResourceTrainable"),
    "mailbox": "ray::Mailbox",
    "driver": "",
    "raylet": "raylet",
    "gcs": "gcs_server",
}
"""How the titles of their processes begin, in the session of that sweep's own Ray."""
MOMENTS = ("baseline", "prune", "grow", "learn", "checkpoint", "between")
CELLS = Path("results") / "chaos_cells.json"
HANG_S = 60.0
PATIENCE_S = 300.0
RESUMES = 5
STOPPED_S = 5.0
"""How long a stopped driver is left so: nobody else could make it go on."""
JOB: dict[str, Any] = {
    "name": "chaos",
    "model": {"name": "gpt2-pico"},
    "data": {"name": "python-docs", "seq_len": 16, "eval_tokens": 256, "probe_windows": 2},
    "training": {"batch_size": 4},
    "cycle": {
        "baseline": {"steps": 100, "lr": 5e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "gradient_sensitivity", "ratio": 0.5},
        "learn": {"steps": 100, "lr": 2.5e-3},
    },
    "search": {
        "space": {"cycle.prune.level": {"choice": [0.2, 0.3, 0.4]}, "cycle.learn.lr": {"choice": [1e-3, 2e-3]}},
        "trials": 3,
    },
    "scale": {"workers": 2, "checkpoint_every_steps": 10, "lane_timeout": 8.0, "max_attempts": 5},
}


@dataclass(kw_only=True)
class Cell:
    """What became of one sweep."""

    hit: bool
    """Whether the process was there at that moment."""
    codes: list[int]
    """How each command ended."""
    differ: int
    """Trials that differ from the calm sweep, or are missing."""
    repeated: int
    """Final records that were written again."""
    broken: list[str]
    """Broken invariants."""
    unclear: list[str]
    """What is wrong with what the commands said."""
    quiet_s: float
    """The longest time, from the signal on, in which a sweep got on by nothing and its command said nothing."""

    @property
    def good(self) -> bool:
        wrong = self.differ or self.repeated or self.broken or self.unclear or self.quiet_s > HANG_S
        return self.hit and not wrong


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="words that a cell must have, such as 'SIGKILL lane learn'")
    options.add_argument("--anew", action="store_true", help="measure again what was measured")
    given = options.parse_args()
    cells = {} if given.anew else kept()
    with tempfile.TemporaryDirectory() as scratch:
        calm: SweepFolder | None = None
        for name in map(" ".join, product(SIGNALS, VICTIMS, MOMENTS)):
            if name in cells or not set(given.only.split()) <= set(name.split()):
                continue
            calm = calm or calm_sweep(Path(scratch))
            cells[name] = run_cell(name, Path(scratch), calm)
            print(f"{'good' if cells[name].good else 'BAD '} {name}: {cells[name]}", file=sys.stderr)
            CELLS.parent.mkdir(exist_ok=True)
            CELLS.write_text(json.dumps({"commit": commit(), "cells": {k: asdict(c) for k, c in cells.items()}}))
    report(cells)


def kept() -> dict[str, Cell]:
    """Return the cells that were measured before, at the same commit."""
    if not CELLS.exists():
        return {}
    content = json.loads(CELLS.read_text())
    return {name: Cell(**cell) for name, cell in content["cells"].items()} if content["commit"] == commit() else {}


def report(cells: dict[str, Cell]) -> None:
    found, asked = list(cells.values()), len(SIGNALS) * len(VICTIMS) * len(MOMENTS)
    calm = "the same sweep, undisturbed"
    lost, broken = sum(c.differ + c.repeated for c in found), sum(len(c.broken) for c in found)
    write(
        "chaos",
        [
            figure("cells measured", [sum(cell.hit for cell in found)], asked=str(asked), unit="cells", baseline="-"),
            figure("trials lost, repeated or different", [lost], asked="0", unit="trials", baseline=calm),
            figure("invariants broken", [broken], asked="0", unit="invariants", baseline="-"),
            figure("commands that ended unclearly", [sum(len(c.unclear) for c in found)], asked="0", unit="commands",
                   baseline="-"),
            figure("longest time without a sign of life", [max(c.quiet_s for c in found)], asked=f"<= {HANG_S:.0f}",
                   unit="s", baseline=calm),
        ],
    )  # fmt: skip


def calm_sweep(results: Path) -> SweepFolder:
    (results / "job.yaml").write_text(dump_mapping(JOB), encoding="utf-8")
    arguments = command("run", str(results / "job.yaml"), "--name", "calm", results=results)
    subprocess.run(arguments, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    return SweepFolder(results / "calm")


class Command:
    """One `raysweep run` or `resume`, and when it last gave a sign of life."""

    def __init__(self, arguments: list[str], folder: Path, log: Path) -> None:
        self._folder, self._log = folder, log
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True
        )
        self.quiet_s = 0.0
        self._seen, self._at = self._traces(), time.monotonic()

    def running(self) -> bool:
        traces, now = self._traces(), time.monotonic()
        if traces != self._seen:
            self._seen, self._at = traces, now
        self.quiet_s = max(self.quiet_s, now - self._at)
        return self.process.poll() is None

    def ray(self) -> int | None:
        """Return the process that leads the session of its Ray: its own child."""
        for entry in PROC.iterdir():
            with suppress(OSError):
                stat = stat_of(int(entry.name)) if entry.name.isdigit() else []
                if (
                    stat
                    and int(stat[1]) == self.process.pid
                    and b"raysweep.cluster.local_ray" in (entry / "cmdline").read_bytes()
                ):
                    return int(entry.name)
        return None

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def _traces(self) -> tuple[int, ...]:
        # Not sessions.jsonl, in which a driver notes that it is there, whatever it does.
        records = [file for file in self._folder.glob("*.json*") if file.name != "sessions.jsonl"]
        files = [*records, self._log, *self._folder.glob("checkpoints/*.partial/*")]
        return (len(files), *(file.stat().st_size for file in files if file.is_file()))


def run_cell(name: str, results: Path, calm: SweepFolder) -> Cell:
    """Run the sweep of one cell to its end."""
    number, victim, moment = name.split()
    folder = SweepFolder(results / name.replace(" ", "-"))
    begin = command("run", str(results / "job.yaml"), "--name", folder.name, results=results)
    codes, unclear, quiet_s, hit = [], [], 0.0, False
    for attempt in range(RESUMES):
        arguments = command("resume", folder.name, results=results) if attempt else begin
        running = Command(arguments, folder.path, results / f"{folder.name}.log")
        ray: int | None = None
        try:
            if not attempt:
                until(lambda: reached(moment, folder.path), running)
                ray = running.ray()
                hit = strike(signal.Signals[number], victim, running, ray)
            running.quiet_s, deadline = 0.0, time.monotonic() + PATIENCE_S
            while running.running() and time.monotonic() < deadline:
                time.sleep(0.1)
            quiet_s = max(quiet_s, running.quiet_s)
        finally:
            left = running.process.poll() is None
            running.process.kill()
            codes.append(running.process.wait())
        unclear += faults_of(running, codes[-1], left, killed=(number, victim) == ("SIGKILL", "driver") and not attempt)
        time.sleep(1.0)
        if ray is not None and members(ray):
            # It ends by itself when it misses its driver.
            time.sleep(20.0)
            if members(ray):
                unclear.append("processes of Ray were left")
                end_session(ray)
        if codes[-1] == 0:
            break
    ended = len((folder.path / "trials.jsonl").read_text().splitlines()) if folder.trials() else 0
    return Cell(
        hit=hit, codes=codes, differ=differences(folder, calm), repeated=ended - len(folder.trials()),
        broken=check(folder), unclear=unclear, quiet_s=round(quiet_s, 1),
    )  # fmt: skip


def until(condition: Callable[[], bool], running: Command) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and running.running():
        assert time.monotonic() < deadline, f"waited in vain: {running.said()}"
        time.sleep(0.005)


def reached(moment: str, folder: Path) -> bool:
    """Return whether a sweep has come so far, from its files."""
    if moment == "baseline":
        return any(folder.glob("checkpoints/*.partial/step-*"))
    if moment == "between":
        return lines(folder / "trials.jsonl") == 1
    phases = (folder / "phases.jsonl").read_text().splitlines() if (folder / "phases.jsonl").exists() else []
    last = json.loads(phases[-1])["phase"] if phases else ""
    before = {"prune": "baseline", "grow": "measure", "learn": "grow", "checkpoint": "grow"}[moment]
    if moment == "checkpoint":
        return last == before and any(folder.glob("checkpoints/.part-*"))
    return last == before


def lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def strike(number: signal.Signals, victim: str, running: Command, ray: int | None) -> bool:
    """Send the signal to a process; return whether there was one."""
    if victim == "driver":
        running.process.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(STOPPED_S)
            running.process.send_signal(signal.SIGCONT)
        return True
    pids = [pid for pid in (members(ray) if ray else []) if title(pid).startswith(VICTIMS[victim])]
    if pids:
        # Of the workers the last one, which is not the rank that speaks for all.
        os.kill(max(pids), number)
    return bool(pids)


def title(pid: int) -> str:
    with suppress(OSError):
        called = (PROC / str(pid) / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
        return called if called.startswith("ray::") else (PROC / str(pid) / "comm").read_text().strip()
    return ""


def faults_of(running: Command, code: int, left: bool, killed: bool) -> list[str]:
    """Return what is wrong with how a command ended."""
    if left:
        return [f"did not end within {PATIENCE_S:.0f} s"]
    said = running.said()
    faults = ["a traceback"] if "Traceback" in said else []
    if code not in (0, 1) and not killed:
        faults.append(f"exit code {code}")
    if code == 1 and "Go on with: raysweep resume" not in said:
        faults.append("no word on how to go on")
    return faults


if __name__ == "__main__":
    main()
