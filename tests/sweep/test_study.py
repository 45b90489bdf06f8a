"""A study proposes the same after a resume as without one, is told each result once, and never ends on a bad point."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from support.jobs import checked_job, quick_job

from raysweep.contracts import Report
from raysweep.errors import RunError, SpecError
from raysweep.job import registry
from raysweep.job.jobfile import Job
from raysweep.job.space import Values
from raysweep.records.schema import TrialRecord
from raysweep.sweep import study as study_module
from raysweep.sweep.study import Study

RANGES: dict[str, Any] = {
    "cycle.prune.level": {"uniform": [0.1, 0.6], "step": 0.1},
    "cycle.learn.lr": {"log_uniform": [1e-5, 1e-2]},
    "cycle.learn.new_head_lr_multiplier": {"uniform": [1, 9]},
}
MIXED: dict[str, Any] = {
    **RANGES,
    "cycle.prune.strategy": {"choice": ["taylor", "entropy", "random"]},
    "cycle.prune.direction": {"choice": ["high", "low"], "when": {"cycle.prune.strategy": "entropy"}},
    "cycle.prune.rounds": {"integer": [1, 4], "when": {"cycle.prune.level": {"above": 0.25}}},
}
GRID: dict[str, Any] = {**MIXED, "cycle.learn.lr": {"choice": [1e-4, 1e-3]}}
del GRID["cycle.learn.new_head_lr_multiplier"]
OPTIONS: dict[str, dict[str, Any]] = {
    "tpe": {"startup_trials": 4},
    "gp": {"startup_trials": 4},
    "nsga2": {"population": 4},
    "strategy_bandit": {"startup_trials": 4},
}
SAMPLERS = registry.available("samplers")
TRIALS = dict.fromkeys(SAMPLERS, 19) | {"gp": 8}
"""As many as show what there is to see: a proposal of the Gaussian process takes seconds."""
GP_SLOW = [pytest.param("gp", marks=pytest.mark.slow)]


def space_for(name: str) -> dict[str, Any]:
    """Return a space that a sampler can search."""
    cannot = registry.load("samplers", name).cannot
    return RANGES if "choice" in cannot or "condition" in cannot else GRID if "continuous" in cannot else MIXED


def some_job(name: str, space: Mapping[str, Any] | None = None, options: Any = None, **search: Any) -> Job:
    sampler = {"name": name, **(OPTIONS.get(name, {}) if options is None else options)}
    found = {"space": dict(space or space_for(name)), "trials": 99, "sampler": sampler, **search}
    return checked_job(quick_job(search=found), "job.yaml")


def loss_of(values: Mapping[str, Any]) -> float:
    loss = (values["cycle.prune.level"] - 0.3) ** 2 + abs(math.log10(values["cycle.learn.lr"]) + 3)
    return loss + (values.get("cycle.prune.strategy") == "random") + values.get("cycle.prune.rounds", 2) / 10


def record_of(
    trial: int, values: Mapping[str, Any], status: str = "COMPLETE", loss: float | None = None, **changes: Any
) -> TrialRecord:
    loss = loss_of(values) if loss is None else loss
    objectives = {"loss": loss, "params": values["cycle.prune.level"]} if status == "COMPLETE" else {}
    fields: dict[str, Any] = {
        "trial": trial, "status": status, "values": dict(values), "seed": 0, "proposer": "tpe", "attempts": 1,
        "objective": objectives.get("loss"), "objectives": objectives, "phases": [], "seconds": 2.0, **changes,
    }  # fmt: skip
    return TrialRecord(**fields)


def reports_of(trial: int, *shares: float) -> list[Report]:
    return [
        Report(trial=trial, phase="learn", cycle=1, step=int(100 * share), flops=share, share=share, loss=9 - share)
        for share in shares
    ]


class Sweep:
    """A sweep of three lanes whose trials end in another order than they began; every fifth one is stopped early."""

    def __init__(self, job: Job, journal: Path | None = None) -> None:
        self.job, self.journal = job, journal
        self.proposed: dict[int, Values] = {}
        self.ended: list[tuple[TrialRecord, list[Report]]] = []
        self.study = Study(job, journal)
        self._order = random.Random(3)

    def step(self) -> Values | None:
        """Where three trials run, end one of them; then start another."""
        self.end()
        return self.start()

    def end(self) -> None:
        running = sorted(set(self.proposed) - {record.trial for record, _ in self.ended})
        if len(running) == 3:
            trial = self._order.choice(running)
            status = {0: "STOPPED", 1: "DIVERGED"}.get(trial % 6, "COMPLETE")
            end = (record_of(trial, self.proposed[trial], status), reports_of(trial, 0.25, 0.5))
            self.ended.append(end)
            self.study.tell(*end)

    def start(self) -> Values | None:
        trial = len(self.proposed) + 1
        values = self.study.ask(trial)
        if values is not None:
            self.proposed[trial] = values
        return values

    def resumed(self) -> Study:
        """Return the study that another session would build from the archive, whose lines are in order of writing."""
        study = Study(self.job, None)
        for record, reports in self.ended:
            study.tell(record, reports)
        ended = {record.trial for record, _ in self.ended}
        for trial, values in self.proposed.items():
            if trial not in ended:
                study.adopt(trial, json.loads(json.dumps(values)))
        return study


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(sampler: str) -> None:
    sweep = Sweep(some_job(sampler))
    for number in range(1, TRIALS[sampler] + 1):
        sweep.end()
        resumed = sweep.resumed().ask(number) if number in (1, 2, 5, 8, 14, 19) else None
        assert sweep.start() == (resumed or sweep.proposed[number])
    assert len(sweep.proposed) == TRIALS[sampler]


@pytest.mark.parametrize("sampler", [*sorted({*SAMPLERS} - {"grid", "gp"}), *GP_SLOW])
def test_equal_seeds_propose_equal_points_and_others_other_ones(sampler: str) -> None:
    def points(seed: int) -> list[Values]:
        raw = some_job(sampler).spec.resolved()
        sweep = Sweep(checked_job({**raw, "seed": seed}, "job.yaml"))
        return [sweep.step() or {} for _ in range(min(12, TRIALS[sampler]))]

    assert points(4) == points(4) != points(5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_point_is_one_of_the_space_and_points_differ(sampler: str) -> None:
    job = some_job(sampler)
    sweep = Sweep(job)
    points = [sweep.step() or {} for _ in range(TRIALS[sampler])]
    assert job.space is not None and all(job.space.contains(values, job.spec.resolved()) for values in points)
    assert len({json.dumps(values, sort_keys=True) for values in points}) > 0.75 * len(points)


@pytest.mark.parametrize(
    "sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "cmaes", "nsga2", "strategy_bandit"]
)
def test_a_sampler_that_learns_finds_better_points_than_random_ones(sampler: str) -> None:
    space = {**RANGES, "cycle.learn.new_head_lr_multiplier": {"choice": [3.0]}} if sampler != "cmaes" else RANGES
    space = MIXED if sampler == "strategy_bandit" else space
    options: dict[str, Any] = {"population": 6} if sampler in ("cmaes", "nsga2") else {"startup_trials": 8}

    def late(name: str, **given: Any) -> float:
        study = Study(some_job(name, space, given), None)
        losses = []
        for trial in range(1, 49):
            values = study.ask(trial)
            assert values is not None
            study.tell(record_of(trial, values), [])
            losses.append(loss_of(values))
        return sum(losses[32:]) / 16

    assert late(sampler, **options) < 0.7 * late("random")


def test_tpe_leaves_random_drawing_behind_after_its_startup_trials() -> None:
    def points(startup: int) -> list[Values]:
        study, found = Study(some_job("tpe", options={"startup_trials": startup}), None), []
        for trial in range(1, 11):
            found.append(study.ask(trial) or {})
            study.tell(record_of(trial, found[-1]), [])
        return found

    early, late = points(5), points(100)
    assert early[:5] == late[:5] and early[5:] != late[5:]


def test_running_trials_count() -> None:
    """Without the constant liar, or with trials of an earlier session forgotten, the next point would be another."""
    sweep = Sweep(some_job("tpe"))
    for _ in range(12):
        sweep.step()
    forgetful = Study(sweep.job, None)
    for end in sweep.ended:
        forgetful.tell(*end)
    assert forgetful.ask(13) != sweep.resumed().ask(13)


def test_a_stopped_trial_teaches_by_its_reports_and_what_the_cluster_lost_nothing() -> None:
    def next_point(status: str, *shares: float, **changes: Any) -> Values | None:
        study = Study(some_job("tpe"), None)
        for trial in range(1, 13):
            values = study.ask(trial)
            assert values is not None
            known = trial != 5
            ended = record_of(trial, values) if known else record_of(trial, values, status, **changes)
            study.tell(ended, reports_of(trial, *shares))
        return study.ask(13)

    nothing = next_point("CANCELLED", 0.5)
    assert next_point("FAILED", cluster_fault=True) == nothing
    assert next_point("DIVERGED") == next_point("FAILED") != nothing
    assert next_point("STOPPED", 0.5) != nothing


# Grid and quasi-random


def test_a_grid_proposes_every_point_once_and_ends() -> None:
    job = some_job("grid")
    study = Study(job, None)
    found: list[Values] = []
    while (values := study.ask(len(found) + 1)) is not None:
        found.append(values)
    assert job.space is not None and found == list(job.space.points(job.spec.resolved()))
    assert study.ask(len(found) + 2) is None
    again = Study(job, None)
    for trial, values in enumerate(found[3:], start=4):
        again.adopt(trial, values)
    assert [again.ask(1), again.ask(2), again.ask(3), again.ask(999)] == [*found[:3], None]


def test_a_grid_leaves_out_points_that_the_jobs_rules_refuse() -> None:
    space = {"training.batch_size": {"choice": [4, 6]}, "cycle.learn.lr": {"choice": [1e-3, 1e-4]}}
    job = some_job("grid", space)
    four = job.spec.scale.model_copy(update={"workers": 4})
    study = Study(dataclasses.replace(job, spec=job.spec.model_copy(update={"scale": four})), None)
    assert [study.ask(trial) for trial in (1, 2, 3)] == [
        {"training.batch_size": 4, "cycle.learn.lr": 1e-3}, {"training.batch_size": 4, "cycle.learn.lr": 1e-4}, None,
    ]  # fmt: skip


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_quasi_random_points_are_spread_more_evenly_than_random_ones_under_conditions_too(sequence: str) -> None:
    """The point of trial n is the n-th of the sequence: told or not, in this session or an earlier one."""
    space = {
        "cycle.prune.strategy": {"choice": ["taylor", "entropy"]},
        "cycle.prune.direction": {"choice": ["high", "low"], "when": {"cycle.prune.strategy": "entropy"}},
        "cycle.learn.lr": {"log_uniform": [1e-4, 1e-2]},
    }
    study = Study(some_job("quasi_random", space, {"sequence": sequence}), None)
    points: list[dict[str, Any]] = [study.ask(trial) or {} for trial in range(1, 65)]
    lows = [values.get("cycle.prune.direction") for values in points]
    assert abs(lows.count("low") - 16) <= 1 and abs(lows.count("high") - 16) <= 1
    rates = sorted((math.log10(values["cycle.learn.lr"]) + 4) / 2 for values in points)
    assert max(abs(rate - (place + 0.5) / 64) for place, rate in enumerate(rates)) < 0.03
    assert Study(some_job("quasi_random", space, {"sequence": sequence}), None).ask(40) == points[39]


# Rules


@pytest.mark.parametrize("sampler", sorted({*SAMPLERS} - {"grid"}))
def test_every_proposed_point_meets_the_rules_and_is_the_same_after_a_resume(sampler: str) -> None:
    searched = MIXED if sampler == "strategy_bandit" else RANGES
    job = some_job(sampler, {**searched, "require": ["cycle.prune.level * 10 >= cycle.learn.new_head_lr_multiplier"]})
    sweep = Sweep(job)
    for number in range(1, min(12, TRIALS[sampler]) + 1):
        sweep.end()
        others = [sweep.resumed()] if number in (1, 3, 6, 8, 12) else []
        values: dict[str, Any] | None = sweep.start()
        assert values is not None and [study.ask(number) for study in others] == [values] * len(others)
        assert values["cycle.prune.level"] * 10 >= values["cycle.learn.new_head_lr_multiplier"]


def test_a_point_that_breaks_a_rule_between_keys_of_the_job_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Values] = []

    def refuse_most(job: Job, values: Values) -> None:
        asked.append(values)
        if values["cycle.prune.strategy"] != "entropy":
            raise SpecError([])

    monkeypatch.setattr(Job, "with_values", refuse_most)
    study = Study(some_job("random"), None)
    points = [study.ask(trial) or {} for trial in range(1, 20)]
    assert {values["cycle.prune.strategy"] for values in points} == {"entropy"} and len(asked) > 30


def test_where_a_sampler_insists_on_refused_points_an_allowed_one_is_drawn_at_random_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nineteen of twenty points are refused."""
    job = some_job("random", {"cycle.learn.lr": {"log_uniform": [1e-4, 1e-2]}, "require": ["cycle.learn.lr >= 9e-3"]})
    monkeypatch.setattr(study_module, "REDRAWS", 1)
    study = Study(job, None)
    points: list[dict[str, Any]] = [study.ask(trial) or {} for trial in range(1, 6)]
    assert all(values["cycle.learn.lr"] >= 9e-3 for values in points)
    assert points == [Study(job, None).ask(trial) for trial in range(1, 6)]
    assert "the job's rules refused 1 points; one is drawn at random" in caplog.text


def test_a_job_that_allows_no_point_ends_in_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "_is_a_job", lambda study, values: False)
    with pytest.raises(RunError, match="trial 1: none of 1000 random points is allowed by the job's rules. Narrow"):
        Study(some_job("random"), None).ask(1)


# Several objectives and constraints


@pytest.mark.parametrize("sampler", [*sorted({*SAMPLERS} - {"cmaes", "grid", "strategy_bandit", "gp"}), *GP_SLOW])
def test_several_objectives_and_constraints_reach_the_sampler_and_resume(sampler: str) -> None:
    job = some_job(sampler, minimize=["loss", "params"], constraints=["perplexity <= 3"])
    sweep = Sweep(job)
    for number in range(1, TRIALS[sampler] + 1):
        sweep.end()
        resumed = sweep.resumed().ask(number) if number in (8, 14, 19) else None
        assert sweep.start() == (resumed or sweep.proposed[number])


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "nsga2"])
def test_points_that_keep_a_constraint_are_preferred_to_better_ones_that_do_not(sampler: str) -> None:
    """The loss falls with the level, but a level above 0.35 is not allowed; infinite misses are no trouble."""
    space = {"cycle.prune.level": {"uniform": [0.1, 0.6], "step": 0.05}, "cycle.learn.lr": {"choice": [1e-3, 1e-4]}}

    few, trials = ({"population": 8}, 64) if sampler == "nsga2" else ({"startup_trials": 12}, 30)

    def mean_level(constrained: bool) -> float:
        rules = ["perplexity <= 3"] if constrained else []
        study, levels = Study(some_job(sampler, space, few, constraints=rules), None), []
        for trial in range(1, trials + 1):
            values: dict[str, Any] | None = study.ask(trial)
            assert values is not None
            level = float(values["cycle.prune.level"])
            miss = {"perplexity <= 3": math.inf if level > 0.55 else level - 0.35} if constrained else {}
            study.tell(record_of(trial, values, loss=-level, violations=miss), [])
            levels.append(level)
        late = levels[trials // 2 :]
        return sum(late) / len(late)

    assert mean_level(True) < 0.42 < mean_level(False)


# Told once; the journal


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "study.journal"


def shown(journal: Path) -> list[optuna.trial.FrozenTrial]:
    """Return what optuna-dashboard would show."""
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.load_study(study_name="raysweep", storage=optuna.storages.JournalStorage(backend)).trials


def test_the_journal_holds_each_ended_trial_once_and_no_running_one(journal: Path) -> None:
    sweep = Sweep(some_job("tpe"), journal)
    for _ in range(16):
        sweep.step()
    for end in sweep.ended:
        sweep.study.tell(*end)
    found = shown(journal)
    assert [trial.user_attrs["trial"] for trial in found] == [record.trial for record, _ in sweep.ended]
    states = {"COMPLETE": TrialState.COMPLETE, "STOPPED": TrialState.PRUNED, "DIVERGED": TrialState.FAIL}
    assert {record.status for record, _ in sweep.ended} == set(states)
    for trial, (record, _) in zip(found, sweep.ended, strict=True):
        assert trial.state == states[record.status] and trial.params == record.values
        assert trial.values == (None if record.objective is None else [record.objective])
        assert trial.intermediate_values == {250: 8.75, 500: 8.5}  # thousandths of the judged compute
        assert trial.user_attrs == {
            "trial": record.trial, "seed": 0, "status": record.status, "proposer": "tpe"
        }  # fmt: skip
        assert trial.duration is not None and trial.duration.total_seconds() == pytest.approx(2, abs=0.01)


def test_another_session_adds_only_what_is_missing_in_the_journal(journal: Path) -> None:
    sweep = Sweep(some_job("tpe"), journal)
    for _ in range(10):
        sweep.step()
    before = journal.read_bytes()
    again = Study(sweep.job, journal)
    for end in [*sweep.ended, *sweep.ended]:
        again.tell(*end)
    assert journal.read_bytes() == before
    again.tell(record_of(99, sweep.proposed[9]), [])
    assert len(shown(journal)) == len(sweep.ended) + 1


def test_what_a_killed_driver_left_in_the_journal_is_repaired(journal: Path) -> None:
    sweep = Sweep(some_job("tpe"), journal)
    for _ in range(10):
        sweep.step()
    content = journal.read_bytes()
    journal.write_bytes(content[:-40])
    Path(f"{journal}.lock").symlink_to(journal)
    again = Study(sweep.job, journal)
    assert len(shown(journal)) == len(sweep.ended) - 1
    for end in sweep.ended:
        again.tell(*end)
    assert len(shown(journal)) == len(sweep.ended) and not Path(f"{journal}.lock").is_symlink()


def test_the_journal_shows_several_objectives_by_name_and_constraints(journal: Path) -> None:
    job = some_job("tpe", minimize=["loss", "params"], constraints=["perplexity <= 3"])
    study = Study(job, journal)
    values = study.ask(1)
    assert values is not None
    study.tell(record_of(1, values, violations={"perplexity <= 3": 0.5}), reports_of(1, 0.5))
    [trial] = shown(journal)
    assert trial.values == [loss_of(values), values["cycle.prune.level"]]
    assert trial.constraints == {"perplexity <= 3": 0.5}
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert any(line.get("system_attr", {}).get("study:metric_names") == ["loss", "params"] for line in lines)


def test_a_result_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(some_job("cmaes"))
    for _ in range(16):
        sweep.step()
    other = sweep.resumed()
    for end in sweep.ended:
        other.tell(*end)
        other.tell(record_of(end[0].trial, end[0].values, loss=-99.0), [])
    assert other.ask(17) == sweep.resumed().ask(17)


def test_a_trial_that_is_no_point_of_the_space_is_shown_but_teaches_nothing(journal: Path) -> None:
    """A fork may have values that the space does not."""
    job = some_job("tpe")
    values = Study(job, None).ask(1)
    assert values is not None
    fork = {**values, "cycle.learn.lr": 0.5, "cycle.learn.gate_start": 0.7}
    study = Study(job, journal)
    study.adopt(1, fork)
    study.tell(record_of(1, fork), [])
    [trial] = shown(journal)
    assert set(trial.params) == set(values) - {"cycle.learn.lr"} and trial.state == TrialState.COMPLETE
    assert study.ask(2) == Study(job, None).ask(2)


def test_a_loss_that_is_no_number_is_a_failure() -> None:
    job = some_job("tpe")
    study, other = Study(job, None), Study(job, None)
    for trial in range(1, 9):
        values = study.ask(trial)
        assert values is not None and other.ask(trial) == values
        study.tell(record_of(trial, values, loss=math.nan), [])
        other.tell(record_of(trial, values, "DIVERGED"), [])
    assert study.ask(9) == other.ask(9)


# Failures

LEARNING = ["tpe", pytest.param("gp", marks=pytest.mark.slow), "cmaes", "nsga2", "strategy_bandit"]


def failures_behind_a_cliff(sampler: str, status: str, **search: Any) -> int:
    """Return how many of the last 32 of 64 trials fail: the loss falls up to a cliff in lr, and all fail behind it."""
    space = MIXED if sampler == "strategy_bandit" else RANGES
    job = some_job(sampler, {**space, "cycle.learn.lr": {"log_uniform": [1e-5, 1e-1]}}, {}, **search)
    study, failed = Study(job, None), 0
    for trial in range(1, 65):
        values: dict[str, Any] | None = study.ask(trial)
        assert values is not None
        rate = values["cycle.learn.lr"]
        if rate > 3e-3:
            failed += trial > 32
            study.tell(record_of(trial, values, status), [])
        else:
            loss = (values["cycle.prune.level"] - 0.3) ** 2 - 0.5 * math.log10(rate)
            study.tell(
                record_of(trial, values, loss=loss, violations=dict.fromkeys(search.get("constraints", ()), -1.0)), []
            )
    return failed


@pytest.mark.parametrize("sampler", LEARNING)
def test_samplers_that_learn_keep_away_from_where_trials_fail(sampler: str) -> None:
    """Of 32, twelve lie behind the cliff by chance; a sampler that is told nothing of failures proposes no others."""
    assert failures_behind_a_cliff(sampler, "FAILED") <= 8


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", pytest.param("gp", marks=pytest.mark.slow)])
def test_failures_teach_searches_for_several_objectives_under_constraints(sampler: str) -> None:
    several = {"minimize": ["loss", "params"], "constraints": ["perplexity <= 3"]}
    assert failures_behind_a_cliff(sampler, "DIVERGED", **several) <= 8


def test_random_points_are_not_drawn_anew_for_failures() -> None:
    assert failures_behind_a_cliff("random", "FAILED") > 8


def test_one_trial_in_ten_goes_where_others_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each point lies among failures; nine of ten are drawn until none is left to try."""
    monkeypatch.setattr(study_module, "REDRAWS", 3)
    study, drawn = Study(some_job("tpe"), None), Counter[int]()
    original = study._draw

    def counted(trial: int, again: int, refused: Any = ()) -> Values | None:
        drawn[trial] += 1
        return original(trial, again, refused)

    study._draw = counted  # type: ignore[method-assign]
    for trial in range(1, 41):
        values = study.ask(trial)
        assert values is not None
        study.tell(record_of(trial, values, "DIVERGED"), [])
    once = [trial for trial in range(4, 41) if drawn[trial] == 1]
    assert set(drawn.values()) == {1, 3} and 1 <= len(once) <= 9


def test_a_space_of_every_form_survives_its_way_through_optuna(journal: Path) -> None:
    """Values that Optuna's own steps cannot reach exactly, too."""
    space = {
        "cycle.prune.level": {"uniform": [0.1, 0.6]},
        "cycle.prune.min_heads_per_layer": {"integer": [1, 3], "step": 2},
        "cycle.grow.ratio": {"uniform": [0, 1], "values": 4},
        "cycle.baseline.lr": {"log_uniform": [1e-5, 1e-2], "values": 7},
        "cycle.measure.contribution": {"choice": [True, False]},
        "data.tokenizer": {"choice": [None]},
    }
    job = some_job("tpe", space)
    study, seen = Study(job, journal), []
    for trial in range(1, 60):
        values = study.ask(trial)
        assert values is not None and job.space is not None and job.space.contains(values, job.spec.resolved())
        seen.append(values)
        study.tell(record_of(trial, values, loss=1.0), [])
    assert [trial.params for trial in shown(journal)] == seen
    assert {values["cycle.grow.ratio"] for values in seen} == {0.0, 0.333333333333, 0.666666666667, 1.0}


def lines_of(journal: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, journal.read_text().splitlines())


def test_an_ended_trial_is_one_line_of_the_journal(journal: Path) -> None:
    study = Study(some_job("tpe"), journal)
    before = len(list(lines_of(journal)))
    for trial in (1, 2, 3):
        values = study.ask(trial)
        assert values is not None
        study.tell(record_of(trial, values), reports_of(trial, 0.1, 0.2, 0.3))
        assert len(list(lines_of(journal))) == before + trial
