"""A check runs no code of a job: modules outside raysweep are read, and imported only where that is allowed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.jobs import quick_job

from raysweep.cli import main
from raysweep.errors import Fault, SpecError
from raysweep.job import code, outside, registry
from raysweep.job.jobfile import check_job
from raysweep.job.outside import VARIABLE, UnknownNameError
from raysweep.job.permission import with_modules
from raysweep.job.yamlfile import dump_mapping

STRATEGY = """
import pathlib
from dataclasses import dataclass, field
from typing import ClassVar

pathlib.Path(__file__).with_name("was-run").touch()

@dataclass(frozen=True, kw_only=True)
class Pruner:
    requires: ClassVar[tuple[str, ...]] = ("contribution",)
    power: float
    floors: list[float] = field(default_factory=list)
    passes: int = 1

    def __call__(self, statistics, generator):
        return statistics.magnitude
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `someones` with a strategy `sink`; each leaves a file when it is run."""
    folder = tmp_path / "someones"
    folder.mkdir()
    (folder / "__init__.py").write_text("import pathlib\npathlib.Path(__file__).with_name('was-run').touch()\n")
    (folder / "sink.py").write_text(STRATEGY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "someones"]:
        del sys.modules[name]


def job(**options: Any) -> dict[str, Any]:
    return quick_job(cycle__prune={"strategy": "someones.sink", "level": 0.3, **options})


def faults_of(raw: dict[str, Any]) -> list[Fault]:
    with pytest.raises(SpecError) as refused:
        check_job(raw, "job.yaml")
    return refused.value.faults


def was_run(package: Path) -> bool:
    return (package / "was-run").exists()


def test_a_job_is_checked_against_source_that_is_never_run(package: Path) -> None:
    check_job(job(power=2.0), "job.yaml")
    code.of_strategies([("prune", "someones.sink")])
    assert registry.attribute_of("prune", "someones.sink", "requires") == ("contribution",)
    found = {fault.key: fault.message for fault in faults_of(job(powr=2.0))}
    assert {"cycle.prune.powr", "cycle.prune.power"} == found.keys()
    assert "Did you mean 'power'?" in found["cycle.prune.powr"] and "required" in found["cycle.prune.power"]
    assert not was_run(package) and "someones" not in sys.modules


@pytest.mark.parametrize("command", ["validate", "run", "simulate"])
def test_commands_run_no_module_that_is_not_allowed(
    package: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(dump_mapping(job(power=2.0)))
    # A job that validate would pass needs torch to be looked at; one more fault ends it before.
    arguments = ["--set", "seed=-1"] if command == "validate" else []
    result = CliRunner().invoke(main, [command, str(path), *arguments])
    if command == "run":
        assert result.exit_code == 2
        assert "cycle.prune.strategy = 'someones.sink': would run the code of module 'someones.sink'" in result.stderr
        assert "--allow-module someones" in result.stderr and not (tmp_path / "results").exists()
    assert not was_run(package)


@pytest.mark.parametrize(
    "name", ["venv.__main__", "test.__main__", "antigravity.x", "os.path", "this.x", "..", "a..b", "x.y"]
)
def test_modules_that_hold_no_strategy_are_refused_and_not_run(name: str) -> None:
    before = set(sys.modules)
    [fault] = faults_of(quick_job(cycle__prune={"strategy": name, "level": 0.3}))
    assert fault.key == "cycle.prune.strategy" and fault.value == name
    assert not {"venv", "venv.__main__", "test", "test.__main__", "antigravity", "this"} & (set(sys.modules) - before)


def test_what_trains_imports_what_is_allowed_and_checks_its_options_again(package: Path) -> None:
    checked = check_job(job(power=-1.0, passes="many"), "job.yaml")
    with pytest.raises(SpecError, match="--allow-module someones, or with RAYSWEEP_MODULES=someones"):
        with_modules(checked)
    assert not was_run(package)
    outside.allow(["other", "someones"])
    with pytest.raises(SpecError, match=r"cycle.prune.passes = 'many': must be a whole number"):
        with_modules(checked)
    assert was_run(package) and os.environ[VARIABLE] == "other,someones"
    assert with_modules(check_job(job(power=2.0), "job.yaml")).spec.cycle.prune is not None


def test_a_fork_may_name_a_module_that_its_job_does_not(package: Path) -> None:
    with pytest.raises(SpecError, match="someones"):
        with_modules(check_job(quick_job(), "job.yaml"), [{"cycle.prune.strategy": "someones.sink"}])
    assert not was_run(package)


@pytest.mark.parametrize(("allowed", "module", "may"), [
    ("a", "a.b", True), ("a.b", "a.b", True), (" a.b , c", "a.b.c", True),
    ("a", "ab.c", False), ("a.b", "a.c", False), ("", "a.b", False),
])  # fmt: skip
def test_a_package_allows_what_lies_inside_it(
    monkeypatch: pytest.MonkeyPatch, allowed: str, module: str, may: bool
) -> None:
    monkeypatch.setenv(VARIABLE, allowed)
    assert outside.is_allowed(module) == may


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class Pruner: pass", "has no dataclass 'Pruner'"),
        ("x = (", "cannot be read"),
        ("x = '\x00'", "cannot be read"),
        ("(" * 5_000, "cannot be read"),
    ],
)
def test_source_without_a_usable_class_is_refused(package: Path, source: str, said: str) -> None:
    (package / "sink.py").write_text(source)
    with pytest.raises(UnknownNameError, match=said):
        registry.look("prune", "someones.sink")


def test_a_class_that_comes_from_elsewhere_is_checked_once_it_is_imported(package: Path) -> None:
    (package / "sink.py").write_text("from someones.other import Pruner\n")
    check_job(job(anything=1), "job.yaml")
    assert not was_run(package)
