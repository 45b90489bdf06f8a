"""`raysweep help` says what a setting means, and `raysweep schema` prints what editors read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from raysweep.cli import main
from raysweep.job.schema import job_schema, space_schema


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def done(*arguments: str) -> str:
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def test_without_a_key_the_sections_are_listed() -> None:
    lines = done("help").splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        "name", "seed", "model", "data", "training", "cycle", "search", "scale", "budget",
    ]  # fmt: skip
    assert lines[-1] == "next:  raysweep help budget"


def test_a_setting_is_said_whole() -> None:
    assert done("help", "cycle.learn.gate_start") == (
        "cycle.learn.gate_start: number, above 0 and at most 1; default 0.1\n"
        "  Gate of a new head at its birth; has an effect only with `gate_warmup_steps`.\n"
    )
    assert done("help", "search.sampler.name").startswith("search.sampler.name: one of cmaes, gp, grid, nsga2, ")


def test_a_section_lists_its_settings() -> None:
    lines = done("help", "cycle.baseline").splitlines()
    assert lines[0] == "cycle.baseline: section; default null"
    assert lines[3].split() == ["steps", "required", "Optimizer", "steps"]
    assert lines[4].startswith("  lr     required  Peak learning rate")


def test_a_strategy_lists_its_options_and_an_option_is_found_by_its_path() -> None:
    assert "  direction  required  " in done("help", "prune.entropy")
    assert done("help", "cycle.prune.direction").startswith("prune.entropy.direction: one of high, low; required\n")


def test_an_unknown_key_is_one_error() -> None:
    result = invoke("help", "cycle.lern")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: no setting 'cycle.lern'. Did you mean 'cycle.learn'? 'raysweep help' lists the sections of a job.\n"
    )


def test_settings_as_json() -> None:
    [learn] = json.loads(done("help", "cycle.learn", "--json"))
    assert (learn["key"], learn["type"], learn["default"]) == ("cycle.learn", "section", "null")
    assert [setting["key"] for setting in learn["settings"]][:2] == ["cycle.learn.steps", "cycle.learn.lr"]
    [steps] = json.loads(done("help", "cycle.learn.steps", "--json"))
    assert steps == learn["settings"][0]
    assert len(json.loads(done("help", "--json"))) == 9


def test_a_schema_is_printed_as_json() -> None:
    assert json.loads(done("schema")) == json.loads(done("schema", "job")) == json.loads(json.dumps(job_schema()))
    assert json.loads(done("schema", "space")) == json.loads(json.dumps(space_schema()))
    assert invoke("schema", "sweep").exit_code == 2


@pytest.mark.parametrize("command", [["help", "cycle"], ["schema", "job"]])
def test_neither_imports_anything_heavy(command: list[str]) -> None:
    code = f"""
import sys
from raysweep.cli import main
try:
    main({command!r})
except SystemExit as end:
    assert not end.code
print([name for name in ("torch", "ray", "transformers", "optuna") if name in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "[]\n")
