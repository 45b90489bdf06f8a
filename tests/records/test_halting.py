"""Trials of several cycles halt where a cycle regressed or nothing gains any more, and know what to go back to."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raysweep.job.plan import PhasePlan
from raysweep.records.halting import find_halt, reached, result
from raysweep.records.schema import PhaseRecord

REGRESSION = {"regression": {"ratio": 1.10, "margin": 1.0}}


def record(phase: str, cycle: int, perplexity: float) -> PhaseRecord:
    return PhaseRecord(
        trial=1, phase=phase, cycle=cycle, key=f"{phase}@{cycle}", reused=False, loss=math.log(perplexity),
        perplexity=perplexity, active_heads=4, head_map=[[0] * 4], params=10, flops_per_token=1.0, steps=5, tokens=5,
        seconds=1.0,
    )  # fmt: skip


def trial(*ends: float) -> list[PhaseRecord]:
    """Return the records of a trial whose baseline and learn phases end with these perplexities."""
    records = [record("baseline", 0, ends[0])]
    for cycle, perplexity in enumerate(ends[1:], 1):
        records += [record("prune", cycle, 999.0), record("measure", cycle, 999.0), record("grow", cycle, 999.0)]
        records.append(record("learn", cycle, perplexity))
    return records


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        ((100.0, 111.0), "baseline@0"),  # more than 1.1 x and more than 1.0 above
        ((100.0, 110.0), None),  # exactly 1.1 x
        ((5.0, 5.9), None),  # 1.18 x, but less than 1.0 above
        ((5.0, 6.1), "baseline@0"),
        ((100.0, 50.0, 56.0), "learn@1"),  # against the best so far
        ((100.0, 50.0, 54.0, 56.0), "learn@2"),  # back to the end before, which had passed
        ((100.0, 99.0, 98.0), None),
    ],
)
def test_a_regression_halts_at_the_last_good_phase(ends: tuple[float, ...], kept: str | None) -> None:
    records = trial(*ends)
    halt = find_halt(records, REGRESSION)
    assert (halt and halt.kept) == kept
    found, reason = result(records, REGRESSION)
    assert found.key == (kept or records[-1].key) and reason == halt
    if halt is not None:
        assert (halt.rule, halt.cycle) == ("regression", len(ends) - 1) and f"{ends[-1]:g}" in halt.reason


@pytest.mark.parametrize("ends", [(100.0,), (100.0, 200.0)])
def test_without_rules_nothing_halts(ends: tuple[float, ...]) -> None:
    assert find_halt(trial(*ends), {}) is None


def test_only_the_end_of_a_cycle_is_judged() -> None:
    assert find_halt(trial(100.0, 50.0)[:-1], REGRESSION) is None  # pruned and not yet learned: 999


@pytest.mark.parametrize(
    ("ends", "patience", "halts"),
    [
        ((100.0, 99.5), 1, True),
        ((100.0, 98.0), 1, False),
        ((100.0, 99.5), 2, False),  # too early to tell
        ((100.0, 99.5, 99.4), 2, True),
        ((100.0, 99.5, 98.9), 2, False),  # over both cycles it gained enough
        ((100.0, 50.0, 50.0, 50.0), 2, True),
        ((100.0, 50.0, 50.0, 50.0), 3, False),
        ((50.0, 70.0, 60.0), 2, True),  # never as good as before
        ((50.0, 70.0, 69.0, 60.0), 2, True),  # nor as good as long before
        ((100.0, 90.0, 99.5), 2, False),  # it gained within the two cycles, though not in the last
    ],
)
def test_a_plateau_halts_with_its_last_phase(ends: tuple[float, ...], patience: int, halts: bool) -> None:
    rules: dict[str, Any] = {"plateau": {"patience": patience, "min_gain": 0.01}, "cycles": 9}
    halt = find_halt(trial(*ends), rules)
    assert (halt is not None) == halts
    if halt is not None:
        assert (halt.rule, halt.kept) == ("plateau", f"learn@{len(ends) - 1}")


def test_a_plateau_says_how_many_cycles_and_what_is_kept() -> None:
    one, two = (
        find_halt(trial(100.0, 99.9, 99.8), {"plateau": {"patience": patience, "min_gain": 0.01}, "cycles": 9})
        for patience in (1, 2)
    )
    assert one is not None and two is not None
    said = "the best perplexity fell by less than 1.00% over the last cycles"
    assert one.reason == f"{said} (1); the end of cycle 2 is kept"
    assert two.reason.startswith(f"{said} (2); ")


def test_a_plateau_after_the_last_cycle_halts_nothing() -> None:
    rules: dict[str, Any] = {"plateau": {"patience": 1, "min_gain": 0.01}, "cycles": 2}
    records = trial(100.0, 50.0, 50.0)
    assert result(records, rules) == (records[-1], None)
    assert find_halt(records, {**rules, "cycles": 3}) is not None


def test_a_regression_in_the_last_cycle_is_undone() -> None:
    records = trial(100.0, 50.0, 99.0)
    found, halt = result(records, {**REGRESSION, "cycles": 2})
    assert halt is not None and found.key == "learn@1"


def test_regression_is_judged_first() -> None:
    rules = {**REGRESSION, "plateau": {"patience": 1, "min_gain": 0.01}}
    halt = find_halt(trial(100.0, 200.0), rules)
    assert halt is not None and halt.rule == "regression"


def test_control_arms_go_as_far_as_the_result() -> None:
    phases = [PhasePlan(kind="learn", cycle=cycle, params={}, key=str(cycle)) for cycle in (0, 1, 2, 3)]
    assert [phase.cycle for phase in reached("dense", phases, 2)] == [0, 1, 2]
    assert [phase.cycle for phase in reached("from_scratch_small", phases[1:], 2)] == [2]
