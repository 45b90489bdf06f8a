"""What a trial is judged by, and which trials no other one is better than."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
from support.sweeps import phase_record

from raysweep.job.search import SearchSpec
from raysweep.records import objectives
from raysweep.records.schema import PhaseRecord

CYCLE = {"baseline": 40.0, "prune": 60.0, "measure": 60.0, "grow": 58.0, "learn": 44.0}


def records(**perplexities: float) -> list[PhaseRecord]:
    return [phase_record(1, label.replace("_", "@"), value) for label, value in perplexities.items()]


def judged(search: SearchSpec | None, ran: list[PhaseRecord], **halting: Any) -> objectives.Outcome:
    return objectives.outcome_of(search, ran, halting)


def test_without_a_search_a_trial_is_judged_by_its_loss() -> None:
    ran = records(**CYCLE)
    outcome = judged(None, ran)
    assert (outcome.objectives, outcome.violations, outcome.halt) == ({"loss": ran[-1].loss}, {}, None)


def test_objectives_are_those_of_the_result_in_the_jobs_order() -> None:
    search = SearchSpec(minimize=("flops_per_token", "loss"))
    ran = records(**CYCLE)
    assert list(judged(search, ran).objectives.items()) == [
        ("flops_per_token", ran[-1].flops_per_token), ("loss", ran[-1].loss),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("constraint", "violation"),
    [
        ("perplexity <= 1.1 * baseline.perplexity", 0.0),  # 44 of 44
        ("perplexity <= 1.05 * baseline.perplexity", 2.0),
        ("perplexity <= baseline.perplexity + 10", -6.0),
        ("measure.perplexity - grow.perplexity >= 3", 1.0),  # 2, not 3
        ("active_heads >= 7", 1.0),
    ],
)
def test_a_constraint_reads_the_result_and_phases_by_their_kind(constraint: str, violation: float) -> None:
    found = judged(SearchSpec(constraints=(constraint,)), records(**CYCLE)).violations
    assert found == {constraint: pytest.approx(violation, abs=1e-9)}
    assert objectives.feasible(found) is (violation <= 0)


def test_of_several_cycles_a_kind_stands_for_its_last_phase() -> None:
    ran = records(**CYCLE, measure_2=80.0, learn_2=43.0)
    assert judged(SearchSpec(constraints=("measure.perplexity <= 0",)), ran).violations == {
        "measure.perplexity <= 0": pytest.approx(80.0)
    }


def test_a_halted_trial_is_judged_by_the_phase_it_went_back_to() -> None:
    search = SearchSpec(minimize="perplexity", constraints=("perplexity <= baseline.perplexity", "learn.loss <= 9"))
    ran = records(**{**CYCLE, "learn": 90.0})
    outcome = judged(search, ran, regression={"ratio": 1.1, "margin": 1.0})
    assert outcome.halt is not None and outcome.halt.kept == ran[0].key
    assert outcome.objectives == {"perplexity": 40.0}
    assert outcome.violations["perplexity <= baseline.perplexity"] == 0
    assert outcome.violations["learn.loss <= 9"] == pytest.approx(ran[-1].loss - 9)  # it did learn, in vain


def test_accuracy_can_be_asked_for() -> None:
    *before, last = records(**CYCLE)
    search = SearchSpec(constraints=("accuracy >= 0.5 * baseline.accuracy",))
    ran = [replace(before[0], accuracy=0.8), *before[1:], replace(last, accuracy=0.3)]
    assert judged(search, ran).violations["accuracy >= 0.5 * baseline.accuracy"] == pytest.approx(0.1)


# Fronts.


def goals(*pairs: tuple[float, ...]) -> dict[int, dict[str, float]]:
    return {number: dict(zip("abc", pair, strict=False)) for number, pair in enumerate(pairs, 1)}


def test_the_front_holds_what_nothing_is_better_than_in_the_order_of_the_first_objective() -> None:
    candidates = goals((3, 1), (1, 3), (2, 2), (3, 3), (2, 3))
    assert objectives.front(candidates) == [2, 3, 1]


def test_equal_candidates_are_both_on_the_front_or_neither() -> None:
    assert objectives.front(goals((1, 2), (2, 1), (1, 2))) == [1, 3, 2]
    assert objectives.front(goals((1, 2), (1, 1), (1, 2))) == [2]


def test_the_front_of_one_objective_is_its_lowest() -> None:
    assert objectives.front(goals((2,), (1,), (1,))) == [2, 3]
    assert objectives.front({}) == []


def test_candidates_are_ranked_front_after_front() -> None:
    assert objectives.ranked(goals((3, 1), (4, 4), (1, 3), (2, 2), (3, 3))) == [3, 4, 1, 5, 2]
    assert objectives.ranked(goals((3,), (1,), (2,), (1,))) == [2, 4, 3, 1]


def test_the_front_is_right_among_many_candidates() -> None:
    generator = random.Random(0)
    candidates = goals(
        *((generator.randint(0, 9), generator.randint(0, 9), generator.randint(0, 9)) for _ in range(80))
    )

    def better(one: int, other: int) -> bool:
        pairs = list(zip(candidates[one].values(), candidates[other].values(), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    expected = set(candidates) - {other for one, other in itertools.product(candidates, repeat=2) if better(one, other)}
    assert set(objectives.front(candidates)) == expected
    assert sorted(objectives.ranked(candidates)) == sorted(candidates)
