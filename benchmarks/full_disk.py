"""Let the disk of results fill up while a sweep trains, writes a checkpoint and appends a record.

Each time the sweep must end with one clear line and nothing damaged; with room again it is resumed, and every record
must equal that of a sweep that had room throughout. Needs the right to mount a tmpfs, and is to be run with no other
Ray on the machine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.disk import JOB
from benchmarks.reference import figure, write
from raysweep.job.yamlfile import dump_mapping
from raysweep.records.folder import SweepFolder
from raysweep.sweep.invariants import examine

SIZE_MB = 120
TRIALS = 2
ROOM = {"training": 0, "writing a checkpoint": 0, "appending a record": 3_000}
"""Bytes that are left when the disk fills up: a line of a record does not fit into the last."""
LIMIT_S = 600.0


def main() -> None:
    with tempfile.TemporaryDirectory() as place, mounted(Path(place)) as disk:
        job = disk / "job.yaml"
        job.write_text(dump_mapping({**JOB, "search": {**JOB["search"], "trials": TRIALS}}))
        calm = sweep(disk, "run", str(job), "--name", "calm")
        assert calm.returncode == 0, calm.stderr
        expected = outcomes(SweepFolder(disk / "calm"))
        faults = [fault for when in ROOM for fault in filled(disk, job, when, expected)]
    for fault in faults:
        print(fault, file=sys.stderr)
    write(
        "full_disk",
        [
            figure(
                "faults of sweeps whose disk filled up while " + ", ".join(ROOM), [len(faults)], asked="0",
                unit="faults",
                baseline="a sweep with room throughout",
            )
        ],
    )  # fmt: skip


@contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """Mount a small disk on a folder, for as long as the block takes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        # Lazily: a process that ends a moment later may still have a file open there.
        subprocess.run(["umount", "-l", str(place)], check=True)


def filled(disk: Path, job: Path, when: str, expected: list[Any]) -> Iterator[str]:
    """Yield what went wrong with a sweep whose disk fills up."""
    name = when.split()[-1]
    folder, balloon = disk / name, disk / "balloon"
    begun = {
        "training": lambda: any(folder.glob("checkpoints/*.partial/step-*")),
        "writing a checkpoint": lambda: any(folder.glob("checkpoints/.part-*")),
        "appending a record": lambda: (folder / "phases.jsonl").exists(),
    }[when]
    filler = threading.Thread(target=fill, args=(balloon, begun, ROOM[when]), daemon=True)
    filler.start()
    ended = sweep(disk, "run", str(job), "--name", name)
    filler.join(LIMIT_S)
    errors = [line for line in ended.stderr.splitlines() if "error" in line.lower()]
    if ended.returncode != 1 or len(errors) != 1 or "no space is left" not in errors[0] or "Traceback" in ended.stderr:
        yield f"{when}: exit {ended.returncode}, {ended.stderr[-2000:]}"
    balloon.unlink()
    damage = {name: found for name, found in examine(SweepFolder(folder), deep=True)["invariants"].items() if found}
    if damage:
        yield f"{when}: {damage}"
    resumed = sweep(disk, "resume", name)
    if resumed.returncode != 0:
        yield f"{when}: resumed, exit {resumed.returncode}, {resumed.stderr[-2000:]}"
    if outcomes(SweepFolder(folder)) != expected:
        yield f"{when}: the records of the resumed sweep differ"
    damage = {name: found for name, found in examine(SweepFolder(folder), deep=True)["invariants"].items() if found}
    if damage:
        yield f"{when}, resumed: {damage}"


def fill(balloon: Path, begun: Callable[[], bool], left: int) -> None:
    """Fill the disk up to so many bytes once something has begun."""
    deadline = time.monotonic() + LIMIT_S
    while not begun() and time.monotonic() < deadline:
        time.sleep(0.002)
    with balloon.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 65_536)
        except OSError:
            stream.truncate(max(0, stream.tell() - left))


def sweep(results: Path, *command: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "raysweep", *command, "--results", str(results)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT_S)


def outcomes(folder: SweepFolder) -> list[Any]:
    """Return what each phase of each trial came to, in order."""
    found = [(record.trial, record.arm, record.key, record.outcome()) for record in folder.phases()]
    return sorted(found, key=lambda each: each[:2])


if __name__ == "__main__":
    main()
