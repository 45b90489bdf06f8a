"""Phase keys follow the code that decides on outcomes: its statements, not its comments."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import raysweep
from raysweep.job import code, registry
from raysweep.job.jobfile import check_job
from raysweep.job.plan import Fingerprints, make_plan

PACKAGE = Path(raysweep.__file__).parent
JOB: dict[str, Any] = {
    "name": "j",
    "model": {"name": "gpt2-nano"},
    "cycle": {
        "baseline": {"steps": 4, "lr": 0.1},
        "prune": {"strategy": "taylor", "level": 0.5},
        "grow": {"strategy": "balanced", "ratio": 0.5},
        "learn": {"steps": 4, "lr": 0.1},
    },
}
FUNCTION = '''"""About a module."""

# Why.
RATE = 0.1
"""About a constant."""


class Thing:
    """About a class."""

    size: int = 3
    """About a field."""

    def double(self) -> str:
        """About a method."""
        return f"{self.size}" + "# no comment" + """
        two # lines"""
'''
NO_OUTCOME = {
    "errors.py",  # words of errors
    "job/bounds.py", "job/cycle.py", "job/entries.py", "job/search.py", "job/section.py",
    "job/expressions.py", "job/names.py", "job/outside.py", "job/parameter.py", "job/paths.py",
    "job/registry.py", "job/space.py",
    "job/spec.py", "job/stages.py", "job/code.py", "job/jobfile.py", "job/spacefile.py", "job/yamlfile.py",
    "job/yamlvalues.py",
    # what a job says reaches a phase through its plan, and the plan is in the key
    "records/schema.py", "records/jsonlines.py", "records/disk.py", "records/atomic_folders.py",
    "records/folder.py", "records/environment.py", "records/locks.py", "records/machine.py",
    # how outcomes are written down
}  # fmt: skip


def keys() -> dict[str, str]:
    plan = make_plan(check_job(JOB, "job.yaml").spec, {}, trial=1, fingerprints=Fingerprints(model="m", data="d"))
    return {phase.kind: phase.key for phase in plan.phases}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Why.\n", ""),
        ("# Why.", "# Another reason."),
        ("RATE = 0.1", "RATE = 0.1  # per step"),
        ('"""About a constant."""', '"""Said in\nother words."""'),
        ('        """About a method."""\n', ""),
        ('"""About a module."""\n\n', ""),
        ('"""About a field."""', '""" "quoted" """'),
    ],
)
def test_comments_docstrings_and_blank_lines_are_not_hashed(old: str, new: str) -> None:
    assert FUNCTION.count(old) == 1
    assert code.digest(FUNCTION.replace(old, new).encode()) == code.digest(FUNCTION.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RATE = 0.1", "RATE = 0.2"),
        ("# no comment", "# one"),
        ("two # lines", "two lines"),
        ("self.size}", "self.size + 1}"),
        ("        return f", "        yield f"),
        ("    size: int = 3\n", ""),
        ('+ """\n', '+ """\n\n'),  # an empty line inside a string is no blank line of code
        ('+ """\n', '+ """  \n'),
    ],
)
def test_every_statement_is_hashed(old: str, new: str) -> None:
    assert FUNCTION.count(old) == 1
    assert code.digest(FUNCTION.replace(old, new).encode()) != code.digest(FUNCTION.encode())


def test_everything_that_a_trial_imports_is_hashed_or_changes_no_outcome() -> None:
    ours, waiting = set(), ["trial/phases.py", "trial/acts.py", "trial/measures/inference.py"]
    while waiting:
        file = waiting.pop()
        if file not in ours:
            ours.add(file)
            waiting += _imported(file)
    strategies = {file for file in ours if file.startswith("strategies/")}
    packages = {file for file in ours if file.endswith("__init__.py")}
    checks = {file for file in ours if file.startswith("job/checks/")}
    assert {
        "trial/training/loop.py",
        "networks/plasticity/surgery.py",
        "contracts/heads.py",
    } < ours & code.core().keys()
    assert ours - code.core().keys() - strategies - packages - checks - NO_OUTCOME == set()


def _imported(file: str) -> list[str]:
    names = []
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raysweep."):
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    paths = [Path(*name.split(".")[1:]) for name in names]
    files = [path.with_suffix(".py") for path in paths] + [path / "__init__.py" for path in paths]
    return [path.as_posix() for path in files if (PACKAGE / path).is_file()]


def test_other_code_of_the_trial_changes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setattr(code, "core", lambda: {"trial/acts.py": "other"})
    assert not set(keys().values()) & set(before.values())


def test_other_code_of_a_strategy_changes_the_keys_from_its_phase_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before, of_phase = keys(), code.of_phase
    monkeypatch.setattr(
        code, "of_phase", lambda kind, params: {"x": "other"} if kind == "grow" else of_phase(kind, params)
    )
    after = keys()
    assert {kind for kind in before if before[kind] != after[kind]} == {"grow", "learn"}


def test_a_strategy_brings_along_the_strategies_that_it_is_made_of() -> None:
    assert code.of_strategies([("prune", "taylor")]).keys() == {"strategies/prune/taylor.py"}
    assert code.of_strategies([("prune", "combined")]).keys() > {"strategies/prune/taylor.py"}


def test_a_strategy_outside_raysweep_is_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_code").mkdir()
    (tmp_path / "outside_code" / "__init__.py").touch()
    module = tmp_path / "outside_code" / "sink.py"
    module.write_text("LEVEL = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert code.of_strategies([("prune", "outside_code.sink")]) == {"outside_code.sink": code.digest(b"LEVEL = 1")}


def test_a_strategy_that_is_not_here_is_one_clear_error() -> None:
    with pytest.raises(registry.UnknownNameError, match="the code of strategy 'nopackage.sink' cannot be read here"):
        code.of_strategies([("prune", "nopackage.sink")])


def test_what_is_no_python_text_is_hashed_as_it_is() -> None:
    assert len({code.digest(b"\x7fELF\x00\xff"), code.digest(b"\x7fELF\x00\xfe"), code.digest(b"a = (")}) == 3
    latin = "# -*- coding: latin-1 -*-\nNAME = 'caf\u00e9'  # \u00e9\n".encode("latin-1")
    assert code.digest(latin) == code.digest(latin.replace(b"  # \xe9", b""))
