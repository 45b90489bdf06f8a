"""The JSON Schemas accept what raysweep accepts, and find what an editor can find."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from raysweep.job import registry
from raysweep.job.checks.sections import STRATEGY_KEYS
from raysweep.job.jobfile import load_job
from raysweep.job.paths import set_path
from raysweep.job.schema import job_schema, options_schema, space_schema
from raysweep.job.yamlfile import load_mapping

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "name": "demo",
    "model": {"name": "gpt2-nano"},
    "cycle": {
        "baseline": {"steps": 10, "lr": 1e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "balanced", "ratio": 0.5},
        "learn": {"steps": 10, "lr": 1e-3},
    },
}
KINDS = [(kind, name) for kinds in STRATEGY_KEYS.values() for kind, _ in kinds for name in registry.available(kind)]


@cache
def of_jobs() -> Draft202012Validator:
    return Draft202012Validator(job_schema())


@cache
def of_spaces() -> Draft202012Validator:
    return Draft202012Validator(space_schema())


def faults(validator: Draft202012Validator, content: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


def job_with(changes: dict[str, Any]) -> dict[str, Any]:
    job = copy.deepcopy(BASE)
    for path, value in changes.items():
        set_path(job, path, value)
    return job


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from ([schema["$ref"]] if "$ref" in schema else [])
        for inner in schema.values():
            yield from references(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from references(inner)


@pytest.mark.parametrize("made", [of_jobs, of_spaces], ids=["job", "space"])
def test_a_schema_is_whole(made: Callable[[], Draft202012Validator]) -> None:
    validator = made()
    Draft202012Validator.check_schema(validator.schema)
    assert {f"#/$defs/{name}" for name in validator.schema["$defs"]} >= set(references(validator.schema))


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_fits_as_written_and_resolved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert faults(of_jobs(), load_mapping(path)) == []
    assert faults(of_jobs(), load_job(path).spec.resolved()) == []


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_space_fits(path: Path) -> None:
    assert faults(of_spaces(), load_mapping(path)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cycle.learn.stepz": 3}, "'stepz' was unexpected"),
        ({"cycle.learn.steps": "many"}, "$.cycle.learn"),
        ({"cycle.learn.steps": 0}, "0 is less than or equal to the minimum of 0"),
        ({"cycle.prune.level": 1}, "$.cycle.prune"),
        ({"cycle.prune.strategy": "taylro"}, "'taylro' is not valid"),
        ({"cycle.prune.levle": 0.2}, "'levle' is not one of"),
        ({"cycle.prune.strategy": "entropy"}, "'direction' is a required property"),
        ({"cycle.prune": {"strategy": "entropy", "level": 0.3, "direction": "up"}}, "'up' is not one of"),
        ({"cycle.grow.init": "split", "cycle.grow.noise": -1}, "-1 is less than or equal to the minimum of 0"),
        ({"model": {"name": "pnn-nano", "num_steps": 0}}, "0 is less than the minimum of 1"),
        ({"search.sampler": {"startup_trials": "ten"}}, "'ten' is not of type 'integer'"),  # of tpe, the default
        ({"search.space": {"cycle.prune.level": {"uniform": [0.1]}}}, "$.search"),
        ({"search.minimize": ["loss", "los"]}, "$.search"),
        ({"name": "a b"}, "does not match"),
    ],
)
def test_a_fault_of_a_job_is_found(changes: dict[str, Any], said: str) -> None:
    found = "\n".join(
        line
        for error in of_jobs().iter_errors(job_with(changes))
        for line in [f"{error.json_path}: {error.message}", *(inner.message for inner in error.context)]
    )
    assert said in found
    assert faults(of_jobs(), BASE) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"cycle.prune": {"strategy": "their.pruner", "level": 0.3, "anything": 1}},
        {"cycle.grow": {"strategy": "balanced", "ratio": 0.5, "init": "their.init", "anything": 1}},
        {"model.name": "Qwen/Qwen2.5-0.5B"},
        {"search": {"space": "spaces/mine.yaml", "minimize": ["loss", "params"], "trials": 3}},
        {"search": {"sampler": {"name": "random"}, "space": {"cycle.prune.level": {"uniform": [0.1, 0.5]}}}},
        {"search": None, "cycle.grow": None},
    ],
)
def test_what_a_job_may_hold_is_no_fault(changes: dict[str, Any]) -> None:
    assert faults(of_jobs(), job_with(changes)) == []


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        ({"cycle.grow.init": "split"}, True),
        ({"cycle.prune.level": {"uniform": [0.1, 0.6], "step": 0.05}}, True),
        ({"cycle.prune.direction": {"choice": ["high", None], "when": {"cycle.prune.strategy": ["entropy"]}}}, True),
        ({"a.b": {"log_uniform": [1e-4, 1e-2], "continuous": True, "when": {"c.d": {"above": 0}}}}, True),
        (
            {"include": ["a.yaml"], "use": "g", "groups": {"g": {"when": {"a": 1}, "b.c": 2}}, "require": ["a < 2"]},
            True,
        ),
        ({"cycle.prune.level": None}, False),
        ({"cycle.prune.level": [0.1, 0.6]}, False),
        ({"cycle.prune.level": {"uniform": [0.1, 0.6], "integer": [1, 2]}}, False),
        ({"cycle.prune.level": {"step": 0.1}}, False),
        ({"cycle.prune.level": {"uniform": [0.1, 0.6], "steps": 5}}, False),
        ({"cycle.prune.level": {"choice": []}}, False),
        ({"a": {"uniform": [0, 1], "when": {"b": {"over": 1}}}}, False),
        ({"groups": {"g": {}}}, False),
    ],
)
def test_an_entry_of_a_space_fits_or_not(entry: dict[str, Any], fits: bool) -> None:
    assert (faults(of_spaces(), entry) == []) is fits


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_strategy_has_exactly_its_options(kind: str, name: str) -> None:
    found = options_schema(kind, name).get("properties", {})
    assert list(found) == [field.name for field in dataclasses.fields(registry.load(kind, name))]


DESCRIBED = """
from dataclasses import dataclass, field

@dataclass(frozen=True, kw_only=True)
class Base:
    inherited: int = 1
    '''Said by
    the base.'''
    replaced: int = 1
    '''Said by the base.'''

@dataclass(frozen=True, kw_only=True)
class Pruner(Base):
    replaced: int = 2
    '''Said by the class.'''
    helped: float = field(metadata={"help": "say how much"})
    silent: bool = False
"""


def test_an_option_is_described_by_the_docstring_under_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "described_options.py").write_text(DESCRIBED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "load", lambda kind, name: __import__(name).Pruner)
    found = options_schema("prune", "described_options")
    assert {name: body.get("description") for name, body in found["properties"].items()} == {
        "inherited": "Said by the base.",
        "replaced": "Said by the class.",
        "helped": "Say how much.",
        "silent": None,
    }
    assert found["required"] == ["helped"]


def test_a_space_names_every_setting_that_may_be_searched() -> None:
    paths = of_spaces().schema["properties"]
    assert {"cycle.learn.lr", "model.name", "data.seq_len", "training.clip_norm", "cycle.prune.direction"} <= set(paths)
    assert not any(path.split(".")[0] in ("search", "scale", "budget", "seed", "name") for path in paths)
    assert all(body["description"] for body in paths.values())
