"""The wheel is the product: what it holds, and that it works in an empty folder, where no clone is within reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from support.jobs import REPOSITORY

BUILT_FROM = ("raysweep", "jobs", "search_spaces", "pyproject.toml", "setup.py", "README.md", "LICENSE")
SETUPTOOLS = 77
"""The major version that pyproject.toml builds with."""


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that sees no clone: neither as its folder nor on its path."""
    hidden = {"PYTHONPATH", "RAYSWEEP_RESULTS", "RAY_ADDRESS"}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run([*map(str, command)], env=variables, capture_output=True, text=True, timeout=280, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of what it is made from: a build leaves folders behind, and reads old ones."""
    try:
        present = int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        present = 0
    if present < SETUPTOOLS:
        pytest.skip(f"the wheel is NOT tested: setuptools {present or 'none'} is here, {SETUPTOOLS} or newer builds it")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, source)
    # Without isolation, what builds it is what is installed here, and no network is asked.
    built = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", source, "--wheel-dir", out)
    assert built.returncode == 0, built.stdout + built.stderr
    [file] = out.iterdir()
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with the wheel in it, which sees every other package of the one that the tests run in."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    installed = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    # A folder that is named in a .pth file is only searched: the .pth files inside it, and so an editable install of
    # the clone, are not read. It comes after the environment's own packages.
    packages = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(packages, "of_the_tests.pth").write_text("".join(f"{path}\n" for path in sorted(here)))
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def done(environment: Path, folder: Path, *arguments: str) -> str:
    """Run a raysweep command that succeeds; return what it prints."""
    ran = run(environment / "bin" / "raysweep", *arguments, cwd=folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert str(REPOSITORY) not in ran.stdout + ran.stderr
    assert "clone" not in ran.stdout + ran.stderr
    return ran.stdout


def test_it_holds_the_package_its_types_and_what_it_ships_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "raysweep").rglob("*.py")}
    shipped = {Path(kind, path.name) for kind in ("jobs", "search_spaces") for path in (REPOSITORY / kind).iterdir()}
    expected = {*modules, *(Path("raysweep") / path for path in shipped), Path("raysweep/py.typed")}
    assert names == {path.as_posix() for path in expected}


def test_jobs_are_listed_and_copied_in_an_empty_folder(environment: Path, empty: Path) -> None:
    assert "  jobs/quickstart.yaml" in done(environment, empty, "list", "jobs")
    done(environment, empty, "copy", "jobs/quickstart.yaml")
    copied = sorted(str(path.relative_to(empty)) for path in empty.rglob("*.yaml"))
    assert copied == ["jobs/quickstart.yaml", "search_spaces/quickstart.yaml"]


def test_jobs_are_checked_and_planned_in_an_empty_folder_by_the_wheel_alone(environment: Path, empty: Path) -> None:
    # In one process, since each one loads torch; `prints` is what the command prints.
    code = """
import contextlib, io, json, sys
from pathlib import Path
from raysweep.cli import main
from raysweep.job.jobfile import load_job

def prints(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(arguments)
        except SystemExit as end:
            assert not end.code, (arguments, end.code)
    return out.getvalue()

found = {"source": load_job("jobs/quickstart.yaml").source, "shipped": json.loads(prints("plan", "--json"))["trials"]}
prints("copy", "jobs/quickstart.yaml")
job = Path("jobs/quickstart.yaml")
job.write_text(job.read_text().replace("trials: 8", "trials: 3"))
found["validate"] = prints("validate", str(job))
found["edited"] = json.loads(prints("plan", str(job), "--json"))["trials"]
found["modules"] = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "raysweep"]
json.dump({**found, "path": sys.path}, sys.stdout)
"""
    ran = run(environment / "bin" / "python", "-c", code, cwd=empty)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["shipped"], found["edited"]) == (8, 3)
    assert found["validate"].startswith("1 job valid.")
    assert len(found["modules"]) > 50
    assert all(Path(file).is_relative_to(environment.resolve()) for file in [found["source"], *found["modules"]])
    assert str(REPOSITORY) not in found["path"]


def test_the_doctor_speaks_of_pip(environment: Path, empty: Path) -> None:
    code = """
from raysweep.cluster import doctor
doctor.package_version = lambda name: None
print(doctor._packages().found)
"""
    ran = run(environment / "bin" / "python", "-c", code, cwd=empty)
    assert ran.stdout.endswith("Run 'pip install raysweep'.\n"), ran.stdout + ran.stderr


@pytest.mark.ray
def test_the_quickstart_runs_in_an_empty_folder(environment: Path, empty: Path) -> None:
    text = done(
        environment, empty, "run", "--trials", "2",
        "--set", "cycle.baseline.steps=20", "--set", "cycle.learn.steps=10", "--set", "data.eval_tokens=256",
        "--set", "model.name=gpt2-pico", "--set", "data.seq_len=32",
    )  # fmt: skip
    assert "best trial " in text and "next:  raysweep show quickstart-1 " in text
    assert sorted(path.name for path in empty.iterdir()) == ["results"]
    assert "2 of 2 trials" in done(environment, empty, "list", "sweeps")
