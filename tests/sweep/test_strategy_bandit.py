"""The strategy bandit in a study: it tries everything once, learns from how trials end, and never stops exploring."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from support.jobs import REPOSITORY, checked_job, quick_job

from raysweep.contracts import Draw, Report
from raysweep.errors import SpecError
from raysweep.job.jobfile import Job, load_job
from raysweep.job.registry import option_faults
from raysweep.job.space import Space, Values, parse_space
from raysweep.records.schema import TrialRecord
from raysweep.strategies.samplers.strategy_bandit import Sampler, arms_of
from raysweep.sweep.study import Study

PRUNE, GROW, INIT = "cycle.prune.strategy", "cycle.grow.strategy", "cycle.grow.init"
LEVEL, RATIO = "cycle.prune.level", "cycle.grow.ratio"
PRUNERS, GROWERS = ["taylor", "fisher", "magnitude", "random"], ["gradient_sensitivity", "balanced", "random"]
SPACE: dict[str, Any] = {
    PRUNE: {"choice": PRUNERS},
    GROW: {"choice": GROWERS},
    LEVEL: {"uniform": [0.1, 0.6], "step": 0.05},
    "cycle.learn.lr": {"log_uniform": [1e-5, 1e-2]},
}
Loss = Callable[[Mapping[str, Any]], float]


def job_of(space: Mapping[str, Any] = SPACE, seed: int = 0, sampler: str = "strategy_bandit", **options: Any) -> Job:
    search = {"space": dict(space), "trials": 999, "sampler": {"name": sampler, **options}}
    return checked_job(quick_job(search=search, seed=seed), "job.yaml")


def record_of(trial: int, values: Values, loss: float | None, status: str = "COMPLETE", **changes: Any) -> TrialRecord:
    objectives = {} if loss is None else {"loss": loss}
    fields: dict[str, Any] = {
        "trial": trial, "status": status, "values": dict(values), "seed": 0, "proposer": "", "attempts": 1,
        "objective": loss, "objectives": objectives, "phases": [], "seconds": 0.0, **changes,
    }  # fmt: skip
    return TrialRecord(**fields)


def points_of(study: Study, count: int, loss: Loss, first: int = 1) -> list[Values]:
    """Ask and tell one trial after the other; a loss of NaN diverges."""
    found = []
    for trial in range(first, first + count):
        values = study.ask(trial)
        assert values is not None
        found.append(values)
        worth = loss(values)
        ended = record_of(trial, values, None, "DIVERGED") if math.isnan(worth) else record_of(trial, values, worth)
        study.tell(ended, [])
    return found


def planted(values: Mapping[str, Any]) -> float:
    """Return a loss that is lowest for fisher with balanced, around level 0.3."""
    strategies = (values[PRUNE] != "fisher") + (values[GROW] != "balanced")
    return strategies + 8 * (values[LEVEL] - 0.3) ** 2 + 0.3 * abs(math.log10(values["cycle.learn.lr"]) + 3)


@pytest.fixture
def strategies_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave settings to chance: TPE takes its time."""
    monkeypatch.setattr(Sampler, "_settings", lambda *args: {})


# Beginning


@pytest.mark.parametrize("told", [True, False], ids=["one lane", "as many lanes as trials"])
def test_the_first_trials_try_every_choice_once_and_evenly(told: bool) -> None:
    seen = set()
    for seed in range(5):
        study = Study(job_of(seed=seed), None)
        if told:
            points = points_of(study, 4, planted)
        else:
            points = [study.ask(trial) or {} for trial in range(1, 5)]
        assert {values[PRUNE] for values in points} == {*PRUNERS}
        assert sorted(Counter(values[GROW] for values in points).values()) == [1, 1, 2]
        seen.add(tuple(values[PRUNE] for values in points))
    assert len(seen) > 2


@pytest.mark.usefixtures("strategies_only")
def test_a_choice_that_no_trial_ever_has_does_not_prolong_the_beginning() -> None:
    """An init exists where heads grow, and here none do."""
    space = {
        **SPACE,
        RATIO: {"uniform": [0, 0.5]},
        INIT: {"choice": ["split", "rewind"], "when": {RATIO: {"above": 0.49}}},
    }
    learning = Counter(values[PRUNE] for values in points_of(Study(job_of(space), None), 40, planted))
    assert learning["fisher"] > 2 * learning["taylor"]


@pytest.mark.usefixtures("strategies_only")
def test_until_a_trial_has_ended_choices_are_tried_evenly() -> None:
    study = Study(job_of(), None)
    points = [study.ask(trial) or {} for trial in range(1, 13)]
    assert set(Counter(values[PRUNE] for values in points).values()) == {3}
    assert set(Counter(values[GROW] for values in points).values()) == {4}


# Learning


def pair_of(values: Values) -> tuple[Any, Any]:
    return values[PRUNE], values[GROW]


@pytest.mark.usefixtures("strategies_only")
def test_it_finds_the_planted_pair_and_stays_with_it_where_uniform_choice_does_not() -> None:
    best = ("fisher", "balanced")
    shares = {"strategy_bandit": 0.0, "random": 0.0}
    for sampler in shares:
        for seed in range(4):
            points = points_of(Study(job_of(seed=seed, sampler=sampler), None), 40, planted)
            shares[sampler] += sum(pair_of(values) == best for values in points[20:]) / 20 / 4
    assert shares["strategy_bandit"] > 0.45 > 3 * shares["random"]


def test_settings_are_drawn_near_their_optimum_too() -> None:
    late: list[dict[str, Any]] = points_of(Study(job_of(), None), 50, planted)[20:]
    near = sum(abs(float(values[LEVEL]) - 0.3) < 0.08 for values in late)
    assert near > 15  # three of eleven levels


def test_only_the_order_of_losses_counts() -> None:
    plain = points_of(Study(job_of(), None), 30, planted)
    bent = points_of(Study(job_of(), None), 30, lambda values: math.exp(4 * planted(values)) - 50)
    assert plain == bent != points_of(Study(job_of(), None), 30, lambda values: -planted(values))


def test_the_same_draw_is_the_same_point() -> None:
    one, other = Study(job_of(), None), Study(job_of(), None)
    points = points_of(one, 25, planted)
    for trial, values in enumerate(points, start=1):
        other.tell(record_of(trial, values, planted(values)), [])
    assert one.ask(26) == other.ask(26)


@pytest.mark.usefixtures("strategies_only")
def test_one_point_in_ten_is_drawn_as_random_would_for_ever() -> None:
    """After 60 trials that leave no doubt, 1000 draws: every pair still comes, and so does every level."""
    study = Study(job_of(leader=1.0), None)
    for trial in range(1, 61):
        pruner, grower = PRUNERS[trial % 4], GROWERS[trial % 3]
        values: Values = {PRUNE: pruner, GROW: grower, LEVEL: 0.3, "cycle.learn.lr": 1e-3}
        study.tell(record_of(trial, values, 10.0 * (pruner != "fisher") + 10.0 * (grower != "balanced")), [])
    drawn: list[Values] = []
    for _ in range(1000):
        drawn.append(study._draw(61, len(drawn)) or {})
    pairs = Counter(map(pair_of, drawn))
    assert len(pairs) == 12
    elsewhere = 1000 - pairs["fisher", "balanced"]
    assert 1000 * 0.1 * 11 / 12 - 30 < elsewhere < 200
    assert pairs["taylor", "gradient_sensitivity"] > 1


def test_less_exploration_than_a_tenth_is_refused() -> None:
    [(option, value, message)] = option_faults("samplers", "strategy_bandit", {"exploration": 0.05})
    assert (option, value) == ("exploration", 0.05) and "0.1" in message


# How trials end


def share_of_taylor(
    status: str | None, *, reports: bool = False, misses: float = 0.0, cluster_fault: bool = False
) -> float:
    """Return how often taylor is chosen after 24 trials, whose taylor trials are alike but end in another way."""
    study = Study(job_of({**SPACE, GROW: {"choice": ["balanced", "random"]}}), None)
    for trial in range(1, 25):
        pruner = PRUNERS[trial % 4]
        values: Values = {
            PRUNE: pruner,
            GROW: ["balanced", "random"][trial // 4 % 2],
            LEVEL: 0.3,
            "cycle.learn.lr": 1e-3,
        }
        if pruner == "taylor" and status is not None:
            seen = [Report(trial=trial, phase="learn", cycle=1, step=5, flops=0.5, share=0.5, loss=0.1)]
            loss = 0.0 if status == "COMPLETE" else None
            ended = record_of(trial, values, loss, status, violations={"x": misses}, cluster_fault=cluster_fault)
            study.tell(ended, seen if reports else [])
        elif pruner == "taylor":
            study.adopt(trial, values)
        else:
            study.tell(record_of(trial, values, 1.0 + trial % 3), [])
    drawn = [study._draw(25, again) or {} for again in range(100)]
    return sum(values[PRUNE] == "taylor" for values in drawn) / 100


@pytest.mark.usefixtures("strategies_only")
def test_a_strategy_whose_trials_diverge_is_left_alone_but_for_the_floor() -> None:
    """Of four: a quarter of the tenth that is random, and the challenges of what is as good as sure."""
    diverged, running = share_of_taylor("DIVERGED"), share_of_taylor(None)
    assert diverged == share_of_taylor("FAILED") < 0.1 < running
    # These say nothing of it.
    assert share_of_taylor("FAILED", cluster_fault=True) == share_of_taylor("CANCELLED") == running


@pytest.mark.usefixtures("strategies_only")
def test_stopped_trials_and_those_that_miss_a_constraint_are_worse_than_completed_ones() -> None:
    best = share_of_taylor("COMPLETE")
    assert best > 0.6
    assert share_of_taylor("STOPPED") < 0.15 and share_of_taylor("STOPPED", reports=True) < 0.15
    assert share_of_taylor("COMPLETE", misses=0.5) < 0.15


@pytest.mark.usefixtures("strategies_only")
def test_a_space_that_always_diverges_still_goes_through_every_choice() -> None:
    points = points_of(Study(job_of(), None), 20, lambda values: math.nan)
    assert {values[PRUNE] for values in points} == {*PRUNERS}


# Spaces


def arms(space: Mapping[str, Any], job: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    parsed: Space = parse_space(space, "space.yaml")
    draw = Draw(trial=1, seed=0, sequence=0, space=parsed, job=job or {}, told=[], is_open=lambda values: True)
    return arms_of(draw)


def test_an_arm_has_the_strategies_that_can_exist_together() -> None:
    space = {
        PRUNE: {"choice": ["taylor", "random"]},
        GROW: {"choice": ["balanced", "random"], "when": {PRUNE: "taylor"}},
        RATIO: {"uniform": [0, 1]},
        INIT: {"choice": ["split", "rewind"], "when": {RATIO: {"above": 0}, GROW: "random"}},
    }
    assert arms(space) == [
        {PRUNE: "taylor", GROW: "balanced"},
        {PRUNE: "taylor", GROW: "random", INIT: "split"},
        {PRUNE: "taylor", GROW: "random", INIT: "rewind"},
        {PRUNE: "random"},
    ]


def test_a_condition_on_a_setting_of_the_job_is_judged_by_the_job() -> None:
    space = {PRUNE: {"choice": ["taylor", "random"]}, GROW: {"choice": ["balanced", "random"], "when": {"seed": 1}}}
    assert len(arms(space, {"seed": 1})) == 4 and len(arms(space, {"seed": 0})) == 2


def test_a_space_of_strategies_alone_is_searched() -> None:
    space = {PRUNE: SPACE[PRUNE], GROW: SPACE[GROW]}
    points = points_of(Study(job_of(space), None), 30, lambda v: (v[PRUNE] != "fisher") + (v[GROW] != "balanced"))
    assert Counter(map(pair_of, points)).most_common(1)[0][0] == ("fisher", "balanced")


def test_a_space_without_a_strategy_is_refused() -> None:
    with pytest.raises(
        SpecError, match="cannot do this search: none of cycle.prune.strategy, .* These can: cmaes, gp,"
    ):
        job_of({LEVEL: SPACE[LEVEL]})


@pytest.mark.parametrize("path", ["jobs/gpt2_heads.yaml", "jobs/gpt2_full.yaml", "jobs/continuous_search.yaml"])
def test_it_searches_the_spaces_of_the_jobs(path: str) -> None:
    job = load_job(str(REPOSITORY / path), ["search.sampler.name=strategy_bandit", "search.minimize=loss"])
    study = Study(job, None)
    points = points_of(study, 24, lambda values: len(repr(values)) + (values[PRUNE] == "random"))
    assert job.space is not None and all(job.space.contains(values, job.spec.resolved()) for values in points)
    assert {values[PRUNE] for values in points} == {*job.space.parameters[job.space.paths.index(PRUNE)].choices}
