"""Break jobs, search spaces and records in thousands of ways, and count how the commands that read them answer.

python -m benchmarks.mutated_files [--seed 1] [--count 10000] [--only jobs]

A file that a person edited may be wrong in any way; the answer is exit 0 or one with 2 and a message, never a
traceback, and takes at most `LONGEST_S` seconds and `MOST_BYTES` more memory. Commands run in this process, in batches
of forks, so that a mutant costs milliseconds and a limit on memory holds for each.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner

from benchmarks.reference import figure, write
from raysweep.cli import main as raysweep
from raysweep.job.shipped import shipped_files
from raysweep.job.yamlfile import dump_mapping, load_mapping

KINDS = ("jobs", "spaces", "records")
COUNT = 10_000
BATCH = 100
"""Mutants of one fork: a broken limit or a crash costs no more of them."""
LONGEST_S = 5.0
MOST_BYTES = 500 * 2**20
TRIALS = 4
READERS = (["status"], ["status", "--check"], ["status", "--json"], ["show", "1"], ["show"], ["resume"])
"""Commands on a sweep; its name comes second."""
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 0.5, 2.0, 1e9, 10**12, 2**63, 10**60, -(10**30), 1e308, float("inf"), float("nan"),
    5e-324, -0.0, "", " ", "0", "3", "true", "\x00", "\x1b[31m", "\u202e", "nan", "1e5", "../..", "/proc/self/mem",
    "/dev/zero", "n" * 300, "n" * 5_000, "a/" * 600, "{}", [], {}, [[]], [{}], [None], {"": 1}, {"name": None},
    {"name": []}, {"choice": []}, {"choice": [[1]]}, {"choice": list(range(2_000))}, {"uniform": [0, 0]},
    {"uniform": [1, 0]}, {"uniform": [0, 1], "step": 1e-200}, {"uniform": [0, 1], "values": 10**9},
    {"log_uniform": [0, 1]}, {"log_uniform": [1e-300, 1e300], "values": 7}, {"integer": [0, 10**18]}, {"when": {}},
    {"when": {"cycle.prune.level": {"above": 0.3}}}, "a <= b", "loss <= " + "(" * 300, "9**9**9 <= loss", ["loss"] * 50,
    "os", "os.path", "antigravity.x", "test.__main__", "x.y.z", "..", "taylor", "tpe", "gpt2-nano", "bert-nano",
    [[[[[[1]]]]]], ["x"] * 3_000, {str(number): number for number in range(300)}, "c" * 20_000,
)  # fmt: skip
PIECES = (
    "{", "}", "[", "]", ":", ": ", "- ", "? ", "&a ", "*a ", "<<: ", "!!int ", "!", "|\n", ">\n", "'", '"', "\t",
    "\x00", "\r", "#", "\ufeff", "%", "@", "`", "---\n", "0", "1:30", "010", "~", "é", "\u2028", "[" * 500,
)  # fmt: skip


@dataclass(kw_only=True)
class Tally:
    """How a number of mutants was answered."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    """What was answered by anything but exit 0 or 2, or took too long: command, answer, and the mutant."""
    seconds: list[float] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.answers += other.answers
        self.faults += other.faults
        self.seconds += other.seconds


class TooLongError(BaseException):
    """A command took more than its time; no `except Exception` stops it."""


def mutate_values(content: Any, draw: random.Random) -> Any:
    """Return a copy of nested values with a few places changed."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = list(_places(content))
        if not places:
            return content
        around, key = draw.choice(places)
        if draw.random() < 0.15:
            del around[key]
        elif draw.random() < 0.15 and isinstance(around, dict):
            around[draw.choice(_names(content))] = around.pop(key)
        elif draw.random() < 0.4:
            around[key] = _near(around[key], draw)
        elif draw.random() < 0.2:
            other, place = draw.choice(places)
            around[key] = copy.deepcopy(other[place])
        else:
            around[key] = copy.deepcopy(draw.choice(STRANGE))
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of nested values: what is around it, and its key or index there."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, inner in list(entries):
        yield content, key
        yield from _places(inner)


def _names(content: Any) -> list[str]:
    return sorted({str(key) for around, key in _places(content) if isinstance(around, dict)}) or ["x"]


def _near(value: Any, draw: random.Random) -> Any:
    """Return a value that somebody may have meant by another one."""
    if isinstance(value, bool) or value is None:
        return draw.choice(("yes", 1, "true", not value))
    if isinstance(value, int | float):
        return draw.choice((-value, value * 10**9, value + 0.5, str(value), [value], 10.0**300 if value else 0))
    if isinstance(value, str):
        return draw.choice((value[:-1], value + "x", value[::-1], value.upper(), value * 40, [value], {"name": value}))
    return draw.choice(([value], {"name": value}, str(value)))


def mutate_text(text: str, draw: random.Random) -> str:
    """Return a text with a few characters added, lost or moved."""
    for _ in range(draw.choice((1, 2, 5))):
        at, to = draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)
        piece = draw.choice((draw.choice(PIECES), text[to : to + 40], ""))
        text = text[:at] + piece + text[at + draw.choice((0, 0, 1, 12)) :]
    return text if draw.random() < 0.95 else text[: draw.randrange(len(text) + 1)]


def mutant(path: Path, draw: random.Random) -> str:
    """Return a mutant of a YAML file."""
    if draw.random() < 0.3:
        return mutate_text(path.read_text(encoding="utf-8"), draw)
    # What our writer cannot write, such as half of a character, no file holds.
    changed = mutate_values(load_mapping(path), draw)
    return dump_mapping(changed) if isinstance(changed, dict) else str(changed)


def break_job(folder: Path, draw: random.Random) -> list[str]:
    """Write a mutant of a shipped job; return the command that reads it."""
    source = draw.choice(sorted(shipped_files("jobs").values()))
    (folder / "jobs").mkdir(exist_ok=True)
    (folder / "jobs" / "mutant.yaml").write_text(mutant(source, draw), encoding="utf-8")
    return ["validate", "jobs/mutant.yaml"]


def break_space(folder: Path, draw: random.Random) -> list[str]:
    """Write a mutant of a shipped search space; return the command that reads it, with a job that uses the space."""
    users = [(job, name) for job in sorted(shipped_files("jobs").values())
             if isinstance(name := load_mapping(job).get("search", {}).get("space"), str)]  # fmt: skip
    job, name = draw.choice(users)
    # Sorted out by file name: a space that is included is as good a place for a fault.
    spaces = {path.name: path for path in shipped_files("search_spaces").values()}
    (folder / "mutant.yaml").write_text(mutant(spaces[Path(name).name], draw), encoding="utf-8")
    return ["validate", str(job), "--set", "search.space=mutant.yaml"]


def break_record(folder: Path, draw: random.Random) -> list[str]:
    """Break one file of a copy of a sweep's folder; return a command that reads it."""
    sweep = folder / "results" / "s"
    shutil.rmtree(folder / "results", ignore_errors=True)
    shutil.copytree(folder / "whole", sweep, symlinks=True)
    file = draw.choice([path for path in sorted(sweep.iterdir()) if path.is_file() and path.name != ".lock"])
    text = file.read_text(encoding="utf-8")
    if draw.random() < 0.3 or file.suffix not in (".jsonl", ".json", ".yaml"):
        file.write_text(mutate_text(text, draw), encoding="utf-8")
    elif file.suffix == ".yaml":
        file.write_text(mutant(file, draw), encoding="utf-8")
    else:
        lines = text.splitlines() if file.suffix == ".jsonl" else [text]
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(mutate_values(json.loads(lines[at]), draw))
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command, *options = draw.choice(READERS)
    return [command, "s", *options]


BREAK: dict[str, Callable[[Path, random.Random], list[str]]] = {
    "jobs": break_job, "spaces": break_space, "records": break_record,
}  # fmt: skip


def answer(command: list[str]) -> tuple[str, float]:
    """Run a command in this process; return how it answered, and the seconds of processor time that it took."""

    def too_long(number: int, frame: Any) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, too_long)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        result = CliRunner().invoke(raysweep, command)
        error = result.exception
    except TooLongError:
        return "too long", time.process_time() - began
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - began
    if error is not None and not isinstance(error, SystemExit):
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
        return f"{type(error).__name__} at {place}", seconds
    return f"exit {result.exit_code}", seconds


def one_batch(kind: str, seed: int, batch: int, count: int, folder: Path) -> Tally:
    """Break and read `count` mutants; the same for the same seed and batch."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, resource.RLIM_INFINITY))
    draw = random.Random(f"{kind}/{seed}/{batch}")
    place = folder / f"batch-{os.getpid()}"
    place.mkdir()
    if (folder / "whole").is_dir():
        os.symlink(folder / "whole", place / "whole")
    os.chdir(place)
    tally = Tally()
    # A sweep that a mutant leaves in order would be run; what is asked here ends before that.
    with mock.patch("raysweep.cluster.driver.run_sweep", lambda *arguments, **options: None):
        for number in range(count):
            command = BREAK[kind](place, draw)
            said, seconds = answer(command)
            # 1: a sweep in which nothing completed, or whose invariants do not hold.
            good = ("exit 0", "exit 2", "exit 1") if kind == "records" else ("exit 0", "exit 2")
            tally.answers[said] += 1
            tally.seconds.append(seconds)
            if said not in good:
                tally.faults.append({"kind": kind, "batch": batch, "number": number, "command": command, "said": said})
    return tally


def whole_sweep(folder: Path) -> None:
    """Leave a finished sweep in `folder/whole`: simulated, but without a mark of that, so that it can be resumed."""
    made = CliRunner().invoke(
        raysweep,
        ["simulate", "jobs/quickstart.yaml", "--trials", str(TRIALS), "--keep", str(folder / "kept"), "--json"],
    )
    assert made.exit_code == 0, made.output
    [sweep] = (folder / "kept").iterdir()
    sweep.rename(folder / "whole")
    env = folder / "whole" / "env.json"
    about = json.loads(env.read_text(encoding="utf-8"))
    del about["simulated"]
    env.write_text(json.dumps(about), encoding="utf-8")


def run(kind: str, *, seed: int, count: int, processes: int) -> Tally:
    """Break and read `count` mutants of one kind."""
    # Loaded once, before the forks: torch takes seconds.
    import raysweep.cluster.driver
    import raysweep.trial.forecast.preflight  # noqa: F401

    tally = Tally()
    with tempfile.TemporaryDirectory() as name, contextlib.closing(multiprocessing.get_context("fork").Pool(
        processes, maxtasksperchild=1)) as pool:  # fmt: skip
        folder = Path(name)
        if kind == "records":
            whole_sweep(folder)
        batches = [
            (kind, seed, batch, min(BATCH, count - batch * BATCH), folder) for batch in range(-(-count // BATCH))
        ]
        waiting = [pool.apply_async(one_batch, batch) for batch in batches]
        for each in waiting:
            tally.add(each.get())
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    figures = []
    for kind in KINDS if asked.only is None else (asked.only,):
        tally = run(kind, seed=asked.seed, count=asked.count, processes=asked.processes)
        print(kind, dict(tally.answers), file=sys.stderr)
        for fault in tally.faults:
            print(json.dumps(fault), file=sys.stderr)
        figures += [
            figure(
                f"{kind}: not answered by exit 0 or 2", [float(len(tally.faults))],
                asked="0", unit=f"of {asked.count:,} mutants", baseline="none",
            ),
            figure(f"{kind}: processor time of one", tally.seconds, asked=f"<= {LONGEST_S:g}", unit="s",
                   baseline="none"),
        ]  # fmt: skip
    write("mutated_files", figures)


if __name__ == "__main__":
    main()
