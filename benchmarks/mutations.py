"""Plant faults in a copy of the code, one at a time, and check that the tests of docs/behaviours.md find them.

    python -m benchmarks.mutations [--only "property 3"]

mutations.yaml holds the faults. One is found when the test that its row names fails in the copy, after it passed
without any fault; a test that could not run, or a program that merely broke, has found nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.reference import figure, save, show
from raysweep.job.yamlfile import load_mapping

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "benchmarks" / "mutations.yaml"
PAGE = ROOT / "docs" / "mutations.md"
TREE = ("raysweep", "tests", "jobs", "search_spaces", "docs", "README.md", "pyproject.toml")
"""Files of the repository that the tests need."""
AT_ONCE = 2
PATIENCE_S = 900
"""For one test: two at once, one of them with ranks of its own, take longer than alone."""
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
"""No network, and one thread for each of the two."""
BROKEN = ("NameError", "ImportError", "SyntaxError", "AttributeError", "TypeError")
"""Errors of a fault that is no valid program; they say nothing about the test."""
HEADER = """# Faults that were planted, and the tests that find them

A test is worth what it finds. Each fault below was planted in the code, alone, and the test beside it, which
[behaviours.md](behaviours.md) names for that row, failed. `python -m benchmarks.mutations` does it again and writes
this page; the faults are in `benchmarks/mutations.yaml`, the count of those found in
`results/reference/mutations.json`. Left out: the test of behaviour 21 that starts a Ray cluster.

| row | what was broken | in | the test that finds it |
|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A fault: one text in place of another that stands exactly once in a file."""

    behaviour: str
    """The row of docs/behaviours.md, such as `property 3` or `behaviour 14`."""
    what: str
    file: str
    find: str
    replace: str
    test: str
    """Its id as pytest takes it, from tests/ on."""

    @property
    def name(self) -> str:
        return f"{self.behaviour}: {self.what}"

    def planted(self, code: str) -> str:
        """Return code with the fault in it.

        Raises:
            ValueError: what it replaces does not stand there exactly once.
        """
        times = code.count(self.find)
        if times != 1:
            raise ValueError(f"{self.name}: {self.find!r} stands {times} times in {self.file}, not once.")
        return code.replace(self.find, self.replace)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of planting a fault."""

    mutation: Mutation
    found: bool
    said: str
    """How the test failed, or why the run does not count."""
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutations")
    parser.add_argument("--only", metavar="ROW", help="a row of docs/behaviours.md, such as 'property 3'")
    only = parser.parse_args().only
    mutations = mutations_of()
    PAGE.write_text(page(mutations), encoding="utf-8")
    chosen = [mutation for mutation in mutations if only in (None, mutation.behaviour)]
    if not chosen:
        sys.exit(f"no fault of {FAULTS.name} belongs to {only!r}.")
    started = time.perf_counter()
    verdicts = tried(chosen)
    if only is None:
        record(verdicts, time.perf_counter() - started)
    survived = [verdict.mutation.name for verdict in verdicts if not verdict.found]
    if survived:
        sys.exit("not found:\n" + "\n".join(survived))


def mutations_of(path: Path = FAULTS) -> list[Mutation]:
    """Return the faults of a file, in its order."""
    rows = load_mapping(path)
    return [Mutation(behaviour=row, **fields) for row, faults in rows.items() for fields in faults]


def page(mutations: Sequence[Mutation]) -> str:
    """Return the text of docs/mutations.md."""
    cells = ([each.behaviour, each.what, f"`{each.file}`", f"`{each.test}`"] for each in mutations)
    return HEADER + "".join(f"| {' | '.join(row)} |\n" for row in cells)


def tried(mutations: Sequence[Mutation]) -> list[Verdict]:
    """Plant each fault in a copy of its own, and run its test; two copies at once."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        for name in TREE:
            source, target = ROOT / name, whole / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            target.parent.mkdir(exist_ok=True)
            copy(source, target)
        for mutation in mutations:
            mutation.planted((whole / mutation.file).read_text(encoding="utf-8"))
        tests = list(dict.fromkeys(mutation.test for mutation in mutations))
        print(f"{len(tests)} tests without a fault, then {len(mutations)} faults", file=sys.stderr)
        failed, said = outcome(whole, tests)
        if failed is not False:
            sys.exit(f"without a fault, the tests do not pass: {said}")
        verdicts: list[Verdict] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for future in as_completed([pool.submit(try_out, mutation, whole) for mutation in mutations]):
                verdicts.append(future.result())
                tell(verdicts, len(mutations))
    return verdicts


def try_out(mutation: Mutation, whole: Path) -> Verdict:
    """Run a fault's test in a copy of the tree with the fault in it."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=whole.parent) as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(whole, copy)
        code = copy / mutation.file
        code.write_text(mutation.planted(code.read_text(encoding="utf-8")), encoding="utf-8")
        failed, said = outcome(copy, [mutation.test])
    found = failed is True and not said.startswith(BROKEN)
    return Verdict(mutation=mutation, found=found, said=said, seconds=time.perf_counter() - started)


def outcome(tree: Path, tests: Sequence[str]) -> tuple[bool | None, str]:
    """Run tests of a tree; return whether one failed, None where not every one could run, and what was said."""
    report = tree / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--timeout={PATIENCE_S}", f"--junitxml={report}"]
    own = {"PYTHONPATH": str(tree), "RAYSWEEP_CACHE": str(tree / "cache"), **QUIET}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)],
        cwd=tree, env=os.environ | own, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        return None, f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    cases = list(ElementTree.parse(report).iter("testcase"))
    for problem in ("error", "skipped"):
        for case in cases:
            if (element := case.find(problem)) is not None:
                return None, f"{problem} in {case.get('name')}: {_first_line(element)}"
    failures = [element for case in cases if (element := case.find("failure")) is not None]
    return bool(failures), _first_line(failures[0]) if failures else "passed"


def _first_line(element: ElementTree.Element) -> str:
    return (element.get("message") or "").partition("\n")[0]


def tell(verdicts: Sequence[Verdict], planned: int) -> None:
    """Print the last result, and an estimate of the time that is left."""
    last, mean = verdicts[-1], sum(verdict.seconds for verdict in verdicts) / len(verdicts)
    left = (planned - len(verdicts)) * mean / AT_ONCE / 60
    word = "found" if last.found else "NOT FOUND"
    print(f"{word}  {last.mutation.name}  [{last.said[:120]}]  about {left:.0f} min left", file=sys.stderr)


def record(verdicts: Sequence[Verdict], seconds: float) -> None:
    found = sum(verdict.found for verdict in verdicts)
    figures = [
        figure(
            "mutations found by the test of their row", [found], asked=f"= {len(verdicts)} tried", unit="mutations",
            baseline="the same tests without a fault",
        ),
        figure("time to try them all, two at once", [seconds / 60], asked="-", unit="min", baseline="-"),
    ]  # fmt: skip
    save("mutations", figures)
    for one in figures:
        show(one)


if __name__ == "__main__":
    main()
