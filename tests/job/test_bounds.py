"""Whatever a job says, it is answered in seconds: numbers, names and spaces have bounds, and no file is a traceback."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.jobs import REPOSITORY, quick_job

from benchmarks.mutated_files import mutant
from raysweep.errors import Fault, SpecError
from raysweep.job.checks.sections import STRATEGY_KEYS
from raysweep.job.jobfile import check_job, load_job
from raysweep.job.registry import available
from raysweep.job.schema import SPACE_PARTS, job_schema, options_schema

JOBS = sorted((REPOSITORY / "jobs").glob("*.yaml"))


def faults_of(raw: Mapping[str, Any]) -> list[Fault]:
    with pytest.raises(SpecError) as refused:
        check_job(raw, "job.yaml")
    return refused.value.faults


def numbers_in(schema: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place and schema of each number in a schema."""
    if isinstance(schema, Mapping):
        if schema.get("type") in ("integer", "number"):
            yield place, schema
        for key, inner in schema.items():
            yield from numbers_in(inner, f"{place}.{key}")
    elif isinstance(schema, list):
        for inner in schema:
            yield from numbers_in(inner, place)


def test_every_number_of_a_job_has_an_upper_bound() -> None:
    schema = job_schema()
    # What a space says of its ranges is checked by hand, see job/entries.py.
    sections = {name: body for name, body in schema["$defs"].items() if name not in SPACE_PARTS}
    options = {
        f"{kind}.{name}": options_schema(kind, name)
        for named in STRATEGY_KEYS.values() for kind, _ in named for name in available(kind)
    }  # fmt: skip
    found = list(numbers_in({"properties": schema["properties"], **sections, **options}))
    assert len(found) > 60
    # The weights of `combined` are a mapping by score, which its own check bounds.
    unbounded = [place for place, body in found if not {"maximum", "exclusiveMaximum"} & body.keys()]
    assert [place for place in unbounded if "weights" not in place] == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("budget__hours", "1:30", "must be a number"),
        ("search", {"trials": "yes"}, "must be a whole number"),
        ("search", {"trials": True}, "must be a whole number"),
        ("cycle__learn__steps", 3.0, "must be a whole number"),
        ("cycle__learn__steps", "3", "must be a whole number"),
        ("cycle__learn__lr", True, "must be a number"),
        ("cycle__measure", {"contribution": "yes"}, "must be true or false"),
        ("cycle__measure", {"contribution": 1}, "must be true or false"),
        ("seed", 10**400, "less than or equal to 9007199254740991"),
        ("cycle__cycles", 10**9, "less than or equal to 1000"),
        ("cycle__grow__init", {}, "must be text"),
        ("cycle__prune__strategy", ["taylor"], "must be text"),
        ("search", {"controls": [["dense"]]}, "must be"),
        ("model__name", "n" * 5_000, "at most 1000 characters"),
        ("model__name", "n" * 300, "a part between two '/' has more than 255 bytes"),
        ("data__name", "a\x00b", "a character that cannot be seen: U+0000"),
        ("data__name", "a\u202eb", "a character that cannot be seen: U+202E, RIGHT-TO-LEFT OVERRIDE"),
        ("data__name", " ", "must not be blank"),
        ("search", {"space": "s" * 5_000}, "no such file"),
        ("search", {"constraints": ["loss <= 3"] * 21}, "at most 20 items"),
    ],
)
def test_a_value_that_no_job_can_mean_is_one_plain_fault(path: str, value: Any, said: str) -> None:
    [*faults] = faults_of(quick_job(**{path: value}))
    assert any(said in fault.message for fault in faults), faults
    assert all(len(str(fault)) < 1_500 for fault in faults)


def test_a_learn_phase_of_a_million_events_is_refused() -> None:
    raw = quick_job(cycle__cycles=None, cycle__continuous={"every": 1}, cycle__learn__steps=1_000_000)
    assert any("makes 1,000,000 events" in fault.message for fault in faults_of(raw))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({f"cycle.learn.x{number}": {"uniform": [0, 1]} for number in range(400)}, "holds more than 1,000 choices"),
        ({"cycle.learn.lr": {"choice": [1e-6 * rank for rank in range(1, 1_100)]}}, "holds more than 1,000 choices"),
        ({"cycle" + ".x" * 3_000: {"uniform": [0, 1]}}, "has more than 8 parts"),
        ({"cycle.learn.lr": {"uniform": [0, 1]}, "require": ["cycle.learn.lr <= 1"] * 21}, "holds 21 rules"),
    ],
)
def test_a_space_that_would_take_minutes_to_check_is_refused(space: dict[str, Any], said: str) -> None:
    began = time.process_time()
    [fault] = faults_of(quick_job(search={"space": space, "trials": 2}))
    assert said in fault.message and time.process_time() - began < 2


def test_misspelt_keys_of_job_and_space_are_named_at_once() -> None:
    raw = quick_job(search={"space": {"cycle.prune.levl": {"uniform": [0.1, 0.3]}}, "trials": 2}, cycle__learn__stepz=3)
    raw["cycle"]["prune"] = {"stragety": "taylor", "level": 0.3}
    found = {fault.key: fault.message for fault in faults_of(raw)}
    assert "Did you mean 'level'?" in found["cycle.prune.levl"]
    assert "Did you mean 'strategy'?" in found["cycle.prune.stragety"]
    assert "Did you mean 'steps'?" in found["cycle.learn.stepz"]
    assert found["cycle.prune.strategy"] == "required, but missing."


def test_mutants_of_jobs_are_valid_or_refused(tmp_path: Path) -> None:
    """A small share of `python -m benchmarks.mutated_files`, without the model and the data."""
    draw, path, refused = random.Random(3), tmp_path / "job.yaml", 0
    for _ in range(60):
        path.write_text(mutant(draw.choice(JOBS), draw), encoding="utf-8")
        try:
            load_job(path)
        except SpecError as error:
            refused += 1
            assert str(error)
    assert refused > 30
