"""A sweep can be looked at where its strategies cannot be found and its job breaks a rule; it cannot be continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.sound import damage
from support.sweeps import contents, finished_sweep

import raysweep
from raysweep.cli import main
from raysweep.job.paths import set_path
from raysweep.job.yamlfile import dump_mapping, load_mapping
from raysweep.records.folder import SweepFolder

RESULTS = Path("results")
# What is stored -> what `resume` says of it.
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a dotted strategy that is not importable here": (
        {"cycle.grow.strategy": "their_package.their_growth"},
        "cycle.grow.strategy = 'their_package.their_growth': no module 'their_package.their_growth' can be found",
    ),
    "a strategy whose name no longer exists": (
        {"cycle.grow.strategy": "balancde"},
        "cycle.grow.strategy = 'balancde': no 'balancde'. Did you mean 'balanced'?",
    ),
    "a setting that breaks a rule": (
        {"cycle.learn.gate_warmup_steps": 1_000},
        "cycle.learn.gate_warmup_steps = 1000: must be at most cycle.learn.steps = 40.",
    ),
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYSWEEP_RESULTS", raising=False)


def stored(settings: dict[str, Any]) -> SweepFolder:
    """Return a finished sweep whose stored job has other settings; the space leaves growth to the job."""
    folder = finished_sweep(RESULTS)
    job = load_mapping(folder.path / "job.yaml")
    del job["search"]["space"]["cycle.grow.strategy"]
    for path, value in settings.items():
        set_path(job, path, value)
    (folder.path / "job.yaml").write_text(dump_mapping(job))
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(params=list(FAULTS.values()), ids=list(FAULTS))
def faulty(request: pytest.FixtureRequest) -> tuple[SweepFolder, str]:
    settings, said = request.param
    return stored(settings), said


@pytest.mark.parametrize(
    ("command", "holds"),
    [
        (("status", "heads-1"), lambda state: state["best"] == 2 and state["planned"] == 3),
        (("status", "heads-1", "--check"), lambda found: found["sweep"] == "heads-1" and found["planned"] == 3),
        (("show", "heads-1"), lambda state: [trial["trial"] for trial in state["trials"]] == [1, 2, 3]),
        (("show", "heads-1", "2"), lambda state: state["trial"] == 2 and len(state["phases"]) == 5),
        (("list", "sweeps"), lambda found: "3 of 3 trials" in found["sweeps"][0]["about"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_it_can_be_looked_at(
    faulty: tuple[SweepFolder, str], command: tuple[str, ...], holds: Callable[[Any], bool]
) -> None:
    before = contents(RESULTS)
    result = invoke(*command, "--json")
    # The sweep was written by hand: --check finds faults in its records, and ends with 1 as it does for any other.
    assert (result.exit_code, result.stderr) == (int("--check" in command), "")
    assert holds(json.loads(result.stdout))
    assert contents(RESULTS) == before


def test_its_table_is_printed(faulty: tuple[SweepFolder, str]) -> None:
    result = invoke("status", "heads-1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "3 of 3 trials ended" in result.stdout


def test_tensorboard_opens_on_it(faulty: tuple[SweepFolder, str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        returncode = 0

        def poll(self) -> int:
            return 0

    monkeypatch.setattr("raysweep.reports.tensorboard.server.serve", lambda logdir, port: Server())
    (faulty[0].path / "tensorboard").mkdir()
    assert invoke("tensorboard", "heads-1").exit_code == 0


def test_python_loads_it(faulty: tuple[SweepFolder, str]) -> None:
    folder = raysweep.load("heads-1", results=RESULTS)
    spec = folder.job().spec
    assert spec.resolved() == load_mapping(folder.path / "job.yaml")
    assert len(folder.phases()) == 12


def test_resume_refuses_it_with_one_error(faulty: tuple[SweepFolder, str]) -> None:
    folder, said = faulty
    before = (folder.path / "job.yaml").read_bytes()
    result = invoke("resume", "heads-1")
    assert (result.exit_code, result.stdout) == (2, "")
    [error] = result.stderr.splitlines()
    assert error.startswith(f"error: {folder.path / 'job.yaml'}: {said}")
    assert (folder.path / "job.yaml").read_bytes() == before and len(folder.proposals()) == 3


@pytest.mark.parametrize(
    "command",
    [
        ("resume", "heads-1", "--set", "budget.hours=2"),
        ("extend", "heads-1", "--trials", "+1"),
        ("fork", "heads-1", "1", "--after", "prune", "--set", "cycle.learn.lr=1e-4"),
        ("retry", "heads-1", "--failed"),
    ],
    ids=lambda command: command[0],
)
def test_whatever_else_works_on_it_refuses_it_too(command: tuple[str, ...]) -> None:
    settings, said = FAULTS["a dotted strategy that is not importable here"]
    folder = stored(settings)
    result = invoke(*command)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(folder.proposals()) == 3 and list(folder.trials()) == [1, 2, 3]


def test_a_stored_setting_of_another_type_is_still_an_error() -> None:
    stored({"cycle.learn.steps": "many"})
    result = invoke("status", "heads-1")
    assert result.exit_code == 2
    assert "job.yaml: cycle.learn.steps = 'many': " in result.stderr
    assert "cannot be read: " in invoke("list", "sweeps").stdout


# Damaged records.

LOOKS = (("status", "heads-1"), ("show", "heads-1"), ("show", "heads-1", "1"))


@pytest.mark.parametrize("command", LOOKS)
@pytest.mark.parametrize("file", ["trials.jsonl", "phases.jsonl"])
def test_what_looks_at_damaged_records_says_so_in_one_line(command: tuple[str, ...], file: str) -> None:
    folder = finished_sweep(RESULTS)
    damage(folder, file, 3, lambda line: bytes(len(line)))
    before = contents(folder.path)
    for options in ((), ("--json",)):
        result = invoke(*command, *options)
        assert result.exit_code == 0, result.stderr
        (note,) = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
        assert note.endswith("left out. 'raysweep resume' runs again what was lost.") and f"{file}: line 3" in note
    assert json.loads(result.stdout)["sweep"] == "heads-1"
    assert contents(folder.path) == before, "a look changes nothing"


def test_a_check_counts_damaged_lines_as_faults() -> None:
    folder = finished_sweep(RESULTS)
    damage(folder, "lanes.jsonl", 1, lambda line: b"[]")
    result = invoke("status", "heads-1", "--check", "--json")
    (fault,) = json.loads(result.stdout)["invariants"]["every line of the records can be read"]
    assert result.exit_code == 1
    said = "lanes.jsonl: line 1 (it holds list, not a record) is damaged and left out; 'raysweep resume' sets it aside"
    assert fault.endswith(said)


def test_a_deep_check_is_a_check() -> None:
    finished_sweep(RESULTS)
    result = invoke("status", "heads-1", "--deep")
    assert result.exit_code == 2 and "give --check, too" in result.stderr
    names = json.loads(invoke("status", "heads-1", "--check", "--deep", "--json").stdout)["invariants"]
    assert "every checkpoint is as it was written" in names
