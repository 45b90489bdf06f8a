"""The state of a sweep from its records alone: counts, the best trial, what was run, and what to do next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweeps import (
    ENTROPY,
    JOB,
    TAYLOR,
    WHOLE,
    add_on_seed,
    add_trial,
    finished_sweep,
    job_mapping,
    make_sweep,
    phase_record,
    trial_record,
)

from raysweep.errors import ArchiveError
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Proposal
from raysweep.reports.summary import is_finished, label, next_commands, sweep_state, trial_state

SWEEP_FIELDS = {
    "sweep", "job", "model", "data", "minimize", "planned", "counts", "best", "phases_run", "phases_reused",
    "steps_run", "worker_groups_started", "trials", "front", "points", "winner",
    "seeds",
}  # fmt: skip
TRIAL_FIELDS = {
    "trial", "status", "values", "objective", "perplexity", "reused", "active_heads", "head_slots", "params",
    "flops_per_token", "attempts", "seconds", "error", "final_perplexity", "controls", "control_errors",
    "recovery", "halted", "seed", "proposer", "of", "objectives", "violations", "feasible", "stopped",
    "metrics",
}  # fmt: skip
PHASE_FIELDS = {
    "trial", "phase", "cycle", "key", "reused", "loss", "perplexity", "active_heads", "head_map", "params",
    "flops_per_token", "steps", "tokens", "seconds", "decision", "samples",
}  # fmt: skip


def test_a_finished_sweep_is_counted_and_its_best_trial_found(tmp_path: Path) -> None:
    state = sweep_state(finished_sweep(tmp_path))
    assert state["counts"] == {"COMPLETE": 2, "FAILED": 1}
    assert (state["best"], state["planned"], state["minimize"]) == (2, 3, "loss")
    assert (state["phases_run"], state["phases_reused"]) == (10, 2)
    assert state["steps_run"] == 100 + 40 + 40  # the reused baselines trained nothing
    assert state["worker_groups_started"] == 1
    assert is_finished(state)


def test_a_trial_is_told_by_its_last_phase(tmp_path: Path) -> None:
    second = sweep_state(finished_sweep(tmp_path))["trials"][1]
    assert second["objective"] == pytest.approx(math.log(41.25))
    assert second["perplexity"] == {**WHOLE, "learn": 41.25}
    assert (second["active_heads"], second["head_slots"]) == (6, 8)
    assert (second["params"], second["flops_per_token"]) == (1_060_000, 2.3e6)
    assert (second["values"], second["reused"], second["attempts"]) == (ENTROPY, ["baseline"], 2)


def test_the_fields_that_scripts_read_are_there(tmp_path: Path) -> None:
    folder = finished_sweep(tmp_path)
    state = sweep_state(folder)
    assert set(state) == SWEEP_FIELDS
    assert all(set(trial) == TRIAL_FIELDS for trial in state["trials"])
    trial = trial_state(folder, 1)
    assert set(trial) == TRIAL_FIELDS | {"sweep", "phases", "control_phases"}
    assert all(set(phase) >= PHASE_FIELDS for phase in trial["phases"])
    assert json.loads(json.dumps([state, trial])) == [state, trial]


def test_a_trial_that_has_not_ended_is_unfinished(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={"baseline": 40.0, "prune": 50.0}, status=None, attempts=2)
    state = sweep_state(folder)
    assert state["counts"] == {"UNFINISHED": 1}
    assert state["best"] is None
    trial = state["trials"][0]
    assert (trial["status"], trial["objective"], trial["attempts"]) == ("UNFINISHED", None, 2)
    assert trial["seconds"] == 4.0  # of its phases so far
    assert not is_finished(state)


def test_a_sweep_that_has_not_begun_has_no_trials(tmp_path: Path) -> None:
    state = sweep_state(make_sweep(tmp_path))
    assert (state["trials"], state["counts"], state["best"]) == ([], {}, None)
    assert (state["phases_run"], state["steps_run"], state["worker_groups_started"]) == (0, 0, 0)
    assert not is_finished(state)


def test_a_proposed_trial_without_phases_has_no_measures(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={}, status=None)
    trial = sweep_state(folder)["trials"][0]
    assert (trial["perplexity"], trial["active_heads"], trial["params"], trial["seconds"]) == ({}, None, None, 0)


def test_a_job_without_a_search_plans_one_trial(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job={key: value for key, value in JOB.items() if key != "search"})
    add_trial(folder, 1, values={})
    state = sweep_state(folder)
    assert (state["planned"], state["best"], state["minimize"]) == (1, 1, "loss")
    assert is_finished(state)


def test_only_trials_that_completed_can_be_the_best(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=5))
    add_trial(folder, 1, perplexities={**WHOLE, "learn": 43.0})
    add_trial(folder, 2, perplexities={**WHOLE, "learn": 20.0}, status="STOPPED")
    add_trial(folder, 3, perplexities={"baseline": 10.0}, status="DIVERGED", error="loss is nan")
    add_trial(folder, 4, perplexities={"baseline": 10.0}, status=None)
    state = sweep_state(folder)
    assert state["best"] == 1
    assert state["counts"] == {"COMPLETE": 1, "STOPPED": 1, "DIVERGED": 1, "UNFINISHED": 1}


def test_of_equal_trials_the_first_is_the_best(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    for trial in (2, 1, 3):
        add_trial(folder, trial)
    state = sweep_state(folder)
    assert state["best"] == 1
    assert [trial["trial"] for trial in state["trials"]] == [1, 2, 3]


def test_phases_of_later_cycles_are_labelled_by_cycle(tmp_path: Path) -> None:
    assert [label(phase_record(1, name, 9.0)) for name in ("baseline", "prune", "learn@2")] == [
        "baseline", "prune", "learn@2",
    ]  # fmt: skip
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={**WHOLE, "prune@2": 60.0, "learn@2": 39.0}, reused=["prune@2"])
    trial = sweep_state(folder)["trials"][0]
    assert trial["perplexity"]["learn"] == 42.5
    assert trial["perplexity"]["learn@2"] == 39.0
    assert trial["reused"] == ["prune@2"]


def test_one_trial_holds_its_phase_records(tmp_path: Path) -> None:
    state = trial_state(finished_sweep(tmp_path), 1)
    assert [phase["phase"] for phase in state["phases"]] == list(WHOLE)
    assert state["phases"][1]["decision"]["heads"] == [[0, 2], [1, 0], [1, 3]]
    assert (state["sweep"], state["values"]) == ("heads-1", TAYLOR)


def test_an_unknown_trial_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"'heads-1' has no trial 9\. Its trials: 1, 2, 3\."):
        trial_state(finished_sweep(tmp_path), 9)
    with pytest.raises(ArchiveError, match="Its trials: none yet"):
        trial_state(make_sweep(tmp_path, "other"), 1)


def commands(folder: SweepFolder) -> list[str]:
    return next_commands(sweep_state(folder))


def test_the_next_commands_fit_how_far_a_sweep_has_come(tmp_path: Path) -> None:
    assert commands(finished_sweep(tmp_path)) == [
        "raysweep show heads-1 2", "raysweep tensorboard heads-1", "raysweep retry heads-1 --failed",
        "raysweep extend heads-1 --trials +3", "raysweep fork heads-1 2 --after grow --set KEY=VALUE",
    ]  # fmt: skip
    begun = make_sweep(tmp_path, "begun")
    assert commands(begun) == ["raysweep resume begun", "raysweep tensorboard begun"]
    add_trial(begun, 1)
    assert commands(begun) == ["raysweep resume begun", "raysweep show begun 1", "raysweep tensorboard begun"]


def test_where_all_failed_the_next_command_shows_why(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=1))
    add_trial(folder, 1, status="FAILED", error="no space left")
    assert commands(folder) == [
        "raysweep show heads-1 1", "raysweep tensorboard heads-1", "raysweep retry heads-1 --failed",
    ]  # fmt: skip


# Several objectives, and constraints.


def two_objectives(tmp_path: Path, **search: Any) -> SweepFolder:
    folder = make_sweep(tmp_path, job=job_mapping(trials=4, minimize=["loss", "params"], **search))
    for trial, (loss, params) in enumerate([(3.0, 30.0), (2.0, 50.0), (3.5, 40.0), (4.0, 10.0)], start=1):
        add_trial(folder, trial, status=None)
        ended = replace(trial_record(trial, objective=loss), objectives={"loss": loss, "params": params})
        folder.add_trial(ended)
    return folder


def test_of_several_objectives_the_front_is_listed_by_the_first(tmp_path: Path) -> None:
    state = sweep_state(two_objectives(tmp_path))
    assert (state["minimize"], state["front"], state["best"]) == (["loss", "params"], [2, 1, 4], 2)
    assert state["trials"][2]["objectives"] == {"loss": 3.5, "params": 40.0}


def test_what_breaks_a_constraint_is_no_best_trial(tmp_path: Path) -> None:
    rule = "perplexity <= baseline.perplexity"
    folder = make_sweep(tmp_path, job=job_mapping(constraints=[rule]))
    for trial, (loss, missed) in enumerate([(1.0, 0.5), (3.0, -1.0), (2.0, 0.0)], start=1):
        add_trial(folder, trial, status=None)
        ended = trial_record(trial, objective=loss)
        folder.add_trial(replace(ended, violations={rule: missed}))
    state = sweep_state(folder)
    assert (state["best"], state["front"]) == (3, [3])
    assert [trial["feasible"] for trial in state["trials"]] == [False, True, True]
    assert state["trials"][0]["violations"] == {rule: 0.5}


def test_a_stopped_trial_says_why_and_is_neither_feasible_nor_not(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, status=None)
    folder.add_trial(replace(trial_record(1, "STOPPED"), stopped="slow"))
    [trial] = sweep_state(folder)["trials"]
    assert (trial["stopped"], trial["feasible"], trial["objectives"]) == ("slow", None, {})


def test_a_sweep_whose_sampler_has_nothing_left_is_finished(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=9))
    add_trial(folder, 1)
    assert not is_finished(sweep_state(folder))
    folder.exhaust()
    assert sweep_state(folder)["planned"] == 1 and is_finished(sweep_state(folder))


def test_a_fork_may_be_the_best_trial(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=1))
    add_on_seed(folder, 1, TAYLOR, 42.0)
    add_on_seed(folder, 2, ENTROPY, 41.0, proposer="fork", of=1)
    state = sweep_state(folder)
    assert (state["best"], state["planned"], state["trials"][1]["of"]) == (2, 2, 1) and is_finished(state)


# Points over seeds.


def replicated(tmp_path: Path, fresh: Sequence[float] = (41.9, 42.0), **search: Any) -> SweepFolder:
    """Return a sweep of two points on two seeds: the second wins the search, the first is better by its mean."""
    folder = make_sweep(tmp_path, job=job_mapping(trials=2, seeds=2, **search))
    add_on_seed(folder, 1, TAYLOR, 42.0, dense=41.0)
    add_on_seed(folder, 2, ENTROPY, 41.5, dense=41.0)
    add_on_seed(folder, 3, TAYLOR, 42.1, seed=1, proposer="replicate", of=1, dense=41.4)
    add_on_seed(folder, 4, ENTROPY, 43.5, seed=1, proposer="replicate", of=2, dense=41.4)
    for seed, perplexity in enumerate(fresh, start=2):
        add_on_seed(folder, 3 + seed, TAYLOR, perplexity, seed=seed, proposer="confirmation", of=1)
    return folder


def test_a_point_is_judged_by_the_mean_over_its_seeds(tmp_path: Path) -> None:
    state = sweep_state(replicated(tmp_path))
    assert (state["best"], state["front"], state["planned"]) == (1, [1], 2 + 2 + 2)
    assert is_finished(state)
    one, two = state["points"]
    assert (one["trial"], one["trials"], one["seeds"], one["against_best"]) == (1, [1, 3], [0, 1], None)
    mean = (math.log(42.0) + math.log(42.1)) / 2
    half = 12.7062 * abs(math.log(42.1) - math.log(42.0)) / 2  # t(0.975, 1) = 12.7062; s / sqrt 2 = half the distance
    assert one["objectives"]["loss"] == {
        "mean": pytest.approx(mean), "low": pytest.approx(mean - half), "high": pytest.approx(mean + half), "count": 2,
    }  # fmt: skip
    difference = two["against_best"]["loss"]
    assert difference["mean"] == pytest.approx((math.log(41.5 / 42.0) + math.log(43.5 / 42.1)) / 2)
    assert (difference["count"], difference["test"]) == (2, "t")


def test_a_point_is_compared_with_its_control_arms_seed_by_seed(tmp_path: Path) -> None:
    one = sweep_state(replicated(tmp_path))["points"][0]
    expected = (math.log(42.0 / 41.0) + math.log(42.1 / 41.4)) / 2
    assert one["against_controls"]["dense"]["mean"] == pytest.approx(expected)


def test_while_replicates_are_running_the_search_says_which_trial_is_best(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=2, seeds=2))
    add_on_seed(folder, 1, TAYLOR, 42.0)
    add_on_seed(folder, 2, ENTROPY, 41.5)
    add_on_seed(folder, 3, TAYLOR, 30.0, seed=1, proposer="replicate", of=1)
    folder.add_proposal(Proposal(trial=4, values=ENTROPY, proposer="replicate", seed=1, attempt=1, of=2))
    state = sweep_state(folder)
    assert (state["best"], state["winner"], state["planned"]) == (2, None, 6)


def test_a_winner_is_confirmed_by_fresh_seeds_only(tmp_path: Path) -> None:
    state = sweep_state(replicated(tmp_path))["winner"]
    assert (state["trial"], state["points_tried"], state["confirmed"]) == (1, 2, True)
    assert state["searched"] == pytest.approx(math.log(42.0))
    assert state["fresh"]["mean"] == pytest.approx((math.log(41.9) + math.log(42.0)) / 2)
    assert state["runner_up"]["trial"] == 2
    waiting = sweep_state(replicated(tmp_path / "b", fresh=[41.9]))["winner"]
    assert (waiting["fresh"]["count"], waiting["fresh_seeds_planned"], waiting["confirmed"]) == (1, 2, False)
    refuted = sweep_state(replicated(tmp_path / "c", fresh=[43.0, 44.0]))["winner"]
    assert refuted["confirmed"] is False and refuted["fresh"]["mean"] > refuted["runner_up"]["mean"]


def test_json_over_seeds_can_be_written(tmp_path: Path) -> None:
    state = sweep_state(replicated(tmp_path))
    assert json.loads(json.dumps(state)) == state


# Control arms and halts.


def controlled(tmp_path: Path, *, pruned: float, learned: float, dense: float) -> dict[str, Any]:
    """Return a trial with a dense arm, by its perplexities."""
    folder = make_sweep(tmp_path)
    folder.add_proposal(Proposal(trial=1, values={}, proposer="job", seed=0, attempt=1))
    reached = {"baseline": 40.0, "prune": pruned, "measure": pruned, "grow": pruned, "learn": learned}
    own = [phase_record(1, label, perplexity) for label, perplexity in reached.items()]
    arm = replace(phase_record(1, "learn", dense), key="dense-learn", arm="dense", active_heads=8)
    for record in [*own, arm]:
        folder.add_phase(record)
    ended = trial_record(1, phases=own)
    folder.add_trial(replace(ended, controls={"dense": [own[0].key, "dense-learn"]}))
    return trial_state(folder, 1)


def test_recovery_is_measured_against_the_dense_control(tmp_path: Path) -> None:
    state = controlled(tmp_path, pruned=80.0, learned=45.0, dense=35.0)  # the baseline's is 40
    assert state["recovery"] == pytest.approx(math.log(80 / 45) / math.log(80 / 35))
    assert state["controls"] == {"dense": {"loss": math.log(35.0), "perplexity": 35.0, "active_heads": 8}}
    assert [phase["arm"] for phase in state["control_phases"]] == ["dense"]
    assert list(state["perplexity"].values()) == [40.0, 80.0, 80.0, 80.0, 45.0]  # the trial's own


@pytest.mark.parametrize(("learned", "sign"), [(30.0, 1), (90.0, -1)])
def test_recovery_is_neither_clamped_nor_made_up(tmp_path: Path, learned: float, sign: int) -> None:
    recovery = controlled(tmp_path, pruned=80.0, learned=learned, dense=40.0)["recovery"]
    assert recovery > 1 if sign > 0 else recovery < 0


def test_where_pruning_helped_there_is_nothing_to_recover(tmp_path: Path) -> None:
    assert controlled(tmp_path, pruned=39.0, learned=38.0, dense=39.0)["recovery"] is None


def test_a_halted_trial_is_told_by_the_phase_it_went_back_to(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    folder.add_proposal(Proposal(trial=1, values={}, proposer="job", seed=0, attempt=1))
    perplexities = {"baseline": 40.0, "prune": 50.0, "measure": 50.0, "grow": 50.0, "learn": 60.0}
    own = [phase_record(1, label, perplexity) for label, perplexity in perplexities.items()]
    for record in own:
        folder.add_phase(record)
    halted = {"rule": "regression", "cycle": 1, "kept": own[0].key, "reason": "worse"}
    folder.add_trial(replace(trial_record(1, phases=own), objective=own[0].loss, halted=halted))
    state = trial_state(folder, 1)
    assert (state["final_perplexity"], state["active_heads"], state["halted"]) == (40.0, 8, halted)
