"""A record reads back as it was written, and one of another schema is refused, never guessed at."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from support.sweeps import phase_record

from raysweep.records.schema import SCHEMA, PhaseRecord, TrialRecord, perplexity

PHASE = PhaseRecord(
    trial=3,
    phase="grow",
    cycle=2,
    key="abc",
    reused=True,
    loss=1.0 / 3.0,
    perplexity=math.exp(1.0 / 3.0),
    active_heads=14,
    head_map=[[0, -1, 2], [0, 0, 1]],
    params=123_456_789_012,
    flops_per_token=1.5e9,
    steps=5,
    tokens=640,
    seconds=0.25,
    curve=[{"step": 5.0, "loss": 0.1, "lr": 5e-5, "gradient_norm": 0.3}],
    decision={"strategy": "random", "options": {}, "heads": [[0, 2]], "scores": [[0.1, 1e-17, 0.0]] * 2},
    statistics={"entropy": [[0.1, 0.2, 0.3]] * 2},
    samples=[{"prompt": "a", "text": "é\u2028\x85", "repetition": 0.0}],
    data_sha256="0" * 64,
)
TRIAL = TrialRecord(
    trial=3,
    status="FAILED",
    values={"cycle.prune.level": 0.3, "data.tokenizer": None, "flag": True},
    seed=1,
    proposer="tpe",
    objective=None,
    attempts=2,
    phases=["abc", "def"],
    seconds=9.5,
    error="learn: worker died",
)


@pytest.mark.parametrize("record", [PHASE, TRIAL], ids=["phase", "trial"])
def test_a_record_survives_json_unchanged(record: Any) -> None:
    assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert set(record.to_dict()) == {item.name for item in fields(record)} and record.to_dict()["schema"] == SCHEMA


@pytest.mark.parametrize("record", [PHASE, TRIAL], ids=["phase", "trial"])
@pytest.mark.parametrize("schema", [SCHEMA + 1, SCHEMA - 1, str(SCHEMA), None])
def test_a_record_of_another_schema_is_refused(record: Any, schema: Any) -> None:
    with pytest.raises(ValueError, match=f"schema {schema!r}; this raysweep reads schema {SCHEMA}"):
        type(record).from_dict(record.to_dict() | {"schema": schema})


@pytest.mark.parametrize("record", [PHASE, TRIAL], ids=["phase", "trial"])
def test_a_record_without_its_schema_or_a_required_field_is_refused(record: Any) -> None:
    content = record.to_dict()
    with pytest.raises(ValueError, match="schema None"):
        type(record).from_dict({key: value for key, value in content.items() if key != "schema"})
    with pytest.raises(TypeError, match="trial"):
        type(record).from_dict({key: value for key, value in content.items() if key != "trial"})


def test_a_field_that_a_later_version_added_is_passed_over() -> None:
    assert PhaseRecord.from_dict(PHASE.to_dict() | {"latency_s": 3}) == PHASE


def test_what_is_optional_may_be_missing() -> None:
    optional = {"curve", "decision", "statistics", "samples", "data_sha256"}
    read = PhaseRecord.from_dict({key: value for key, value in PHASE.to_dict().items() if key not in optional})
    assert (read.curve, read.decision, read.statistics, read.samples, read.data_sha256) == ([], None, None, None, "")


def test_an_outcome_is_all_but_where_and_how_long_a_phase_ran() -> None:
    elsewhere = replace(PHASE, trial=8, reused=False, seconds=99.0)
    assert elsewhere.outcome() == PHASE.outcome()
    assert set(PHASE.to_dict()) - set(PHASE.outcome()) == {"trial", "arm", "reused", "seconds"}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": 1.0 / 3.0 + 1e-16},
        {"key": "abd"},
        {"head_map": [[0, -1, 1], [0, 0, 1]]},
        {"curve": []},
        {"decision": None},
        {"statistics": None},
        {"samples": None},
        {"data_sha256": "1" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_any_other_difference_is_a_different_outcome(changes: dict[str, Any]) -> None:
    assert replace(PHASE, **changes).outcome() != PHASE.outcome()


def test_taking_a_record_apart_leaves_it_as_it_is() -> None:
    PHASE.to_dict()["head_map"][0][0] = 9
    PHASE.outcome()["curve"].clear()
    assert PHASE.head_map[0][0] == 0 and len(PHASE.curve) == 1


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (math.log(50), 50.0), (709.0, math.exp(709)), (710.0, math.inf), (1e9, math.inf)]
)
def test_perplexity_is_the_exponential_of_the_loss_and_infinite_where_that_overflows(
    loss: float, expected: float
) -> None:
    assert perplexity(loss) == pytest.approx(expected, rel=1e-12)


def test_the_perplexity_of_no_number_is_no_number() -> None:
    assert math.isnan(perplexity(math.nan))


def test_skimming_a_line_leaves_out_a_field_and_those_after_it() -> None:
    whole = phase_record(3, "prune", 50.0)
    line = json.dumps(whole.to_dict()).encode()
    skimmed = PhaseRecord.from_dict(PhaseRecord.skim(line, stop="curve"))
    assert skimmed == replace(whole, decision=None, samples=None)
    assert PhaseRecord.skim(line, stop="samples")["decision"] == whole.decision


def test_skimming_reads_a_line_whole_where_cutting_it_would_lose_more() -> None:
    event = {"step": 1, "phase": "measure", "statistics": {"taylor": [[0.5]]}}
    whole = replace(phase_record(3, "learn", 50.0), events=[event])
    assert PhaseRecord.skim(json.dumps(whole.to_dict()).encode(), stop="statistics")["events"] == [event]
    ordered_by_name = json.dumps(whole.to_dict(), sort_keys=True).encode()
    assert PhaseRecord.from_dict(PhaseRecord.skim(ordered_by_name, stop="curve")) == whole


def test_every_field_that_a_table_needs_stands_before_the_curve() -> None:
    names = [item.name for item in fields(PhaseRecord)]
    bulky = {"curve", "evaluations", "decision", "regrown", "trajectory", "statistics", "agreement", "samples"}
    assert set(names[names.index("curve") :]) == bulky
