"""What a job will take: exact counts where the space leaves no choice, and times that follow from stated paces."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.jobs import checked_job
from support.sweeps import JOB, SPACE

from raysweep.job.plan import Fingerprints
from raysweep.job.space import Values
from raysweep.records import points
from raysweep.records.schema import PhaseRecord
from raysweep.trial.forecast import calibration
from raysweep.trial.forecast import estimate as module
from raysweep.trial.forecast.estimate import START_SECONDS, Estimate, estimate
from raysweep.trial.forecast.preflight import Checked, check

CHECKED = Checked(fingerprints=Fingerprints(model="model", data="data"), data={})
NO_CHOICE = {"cycle.prune.strategy": {"choice": ["taylor"]}}
PARAMETERS = 940_800
"""Of gpt2-nano."""


def estimated(
    space: Mapping[str, Any] | None = None, trials: int = 3, past: Any = (), sharing: bool = True, **sections: Any
) -> Estimate:
    """Estimate a job of 100 baseline and 40 learning steps."""
    job = {**copy.deepcopy(JOB), **sections}
    job["search"] = {"space": dict(space), "trials": trials} if space else None
    if job["search"] is None:
        del job["search"]
    return estimate(checked_job(job, "job.yaml"), CHECKED, past, sharing)


def record(phase: str, steps: int, seconds: float, reused: bool = False) -> PhaseRecord:
    return PhaseRecord(
        trial=1, phase=phase, cycle=0, key=f"{phase}-{seconds}", reused=reused, loss=3.0, perplexity=20.0,
        active_heads=8, head_map=[[0]], params=1, flops_per_token=1.0, steps=steps, tokens=0, seconds=seconds,
    )  # fmt: skip


def test_the_size_of_the_model_is_exact() -> None:
    layers = 4 * (12 * 128 * 128 + 13 * 128)  # matrices; biases and norms
    assert (1024 + 128) * 128 + layers + 2 * 128 == PARAMETERS
    assert estimated().parameters == PARAMETERS


def test_where_the_space_leaves_no_choice_all_trials_share_everything() -> None:
    found = estimated(NO_CHOICE)
    assert (found.trials, found.phases, found.phases_shared) == (3, 15, 5)
    assert (found.steps, found.steps_shared) == (3 * (100 + 40), 100 + 40)


def test_trials_that_never_agree_share_the_baseline_alone() -> None:
    found = estimated({"cycle.learn.lr": {"log_uniform": [1e-4, 1e-2]}})
    assert (found.phases, found.phases_shared) == (15, 4 + 3)
    assert (found.steps, found.steps_shared) == (420, 100 + 3 * 40)


def test_trials_with_baselines_of_their_own_share_nothing() -> None:
    found = estimated({"cycle.baseline.lr": {"log_uniform": [1e-4, 1e-2], "continuous": True}})
    assert (found.phases_shared, found.steps_shared) == (found.phases, found.steps) == (15, 420)


def test_every_cycle_counts() -> None:
    cycle = {**JOB["cycle"], "cycles": 3}
    found = estimated(NO_CHOICE, trials=2, cycle=cycle)
    assert (found.phases, found.phases_shared) == (2 * 13, 13)
    assert (found.steps, found.steps_shared) == (2 * 220, 220)
    assert [phase["phase"] for phase in found.example][3:6] == ["grow", "learn", "prune@2"]


def test_a_job_without_a_search_is_one_trial() -> None:
    found = estimated()
    assert (found.trials, found.phases, found.phases_shared, found.steps_shared) == (1, 5, 5, 140)


@pytest.mark.parametrize("trials", [1, 8, 40])
def test_sharing_never_adds_work_and_the_same_job_is_counted_the_same(trials: int) -> None:
    first, second = estimated(SPACE, trials=trials), estimated(SPACE, trials=trials)
    assert first.phases_shared <= first.phases == 5 * trials
    assert first.steps_shared <= first.steps == 140 * trials
    assert (first.phases_shared, first.example) == (second.phases_shared, second.example)


PAST = [
    record("baseline", 100, 52.0), record("prune", 0, 2.0), record("learn", 50, 27.0), record("learn", 50, 0.1, True),
]  # fmt: skip
"""A step takes 0.5 s, all else in a phase 2 s; what was reused says nothing."""


def test_past_records_set_the_pace() -> None:
    found = estimated(NO_CHOICE, past=PAST)
    assert found.seconds == pytest.approx(START_SECONDS + 140 * 0.5 + 5 * 2.0)
    assert found.seconds_from == "3 phases of this model run before"


def test_without_sharing_every_phase_takes_its_time() -> None:
    found = estimated(NO_CHOICE, past=PAST, sharing=False)
    assert found.seconds == pytest.approx(START_SECONDS + 3 * (140 * 0.5 + 5 * 2.0))


def test_lanes_divide_all_but_the_baseline_that_they_wait_for() -> None:
    found = estimated({"cycle.learn.lr": {"log_uniform": [1e-4, 1e-2]}}, past=PAST, scale={"lanes": 3})
    rest = 3 * 2.0 + 3 * (40 * 0.5 + 2.0)
    assert found.seconds == pytest.approx(START_SECONDS + 52.0 + rest / 3)


def test_more_lanes_than_trials_do_not_help() -> None:
    few, many = (estimated(NO_CHOICE, past=PAST, sharing=False, scale={"lanes": lanes}) for lanes in (3, 30))
    assert few.seconds == many.seconds


def test_records_without_training_set_no_pace() -> None:
    assert "matrix product" in estimated(past=[record("prune", 0, 2.0)]).seconds_from


def test_without_past_a_matrix_product_sets_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_matrix_product_speed", lambda device: 1e9)
    one = estimated(training={"batch_size": 8})
    # 2 floating-point operations per weight of the matrix products and 4 x 128 x 128 per layer for attention
    flops = 2 * (4 * 12 * 128 * 128 + 1024 * 128) + 4 * 4 * 128 * 128
    per_token = flops / (1e9 * module.TYPICAL_EFFICIENCY)
    expected = START_SECONDS + (140 * 8 * 128 * 3 + 5 * 8192) * per_token
    assert one.seconds == pytest.approx(expected)
    two = estimated(training={"batch_size": 8}, scale={"workers": 2})
    assert two.seconds is not None
    assert two.seconds - START_SECONDS == pytest.approx((expected - START_SECONDS) / 2)


def test_the_measured_speed_is_that_of_one_core_and_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    assert 1e8 < module._core_speed() < 1e13
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to judge by")
def test_without_a_gpu_nothing_is_claimed_about_one() -> None:
    found = estimated(NO_CHOICE, scale={"gpus_per_worker": 1})
    assert found.seconds is None
    assert found.seconds_from == "no GPU here to judge by"
    assert found.to_dict()["seconds"] is None


WEIGHTS, FULL = 4 * PARAMETERS, 12 * PARAMETERS


@pytest.mark.parametrize(
    ("keep", "lanes", "every", "expected"),
    [
        # Of two trials that have ended the weights of baseline and learn; all of the last one, which runs.
        ("results", 1, 1_000, 2 * 2 * WEIGHTS + 2 * FULL),
        ("results", 1, 10, 2 * 2 * WEIGHTS + 3 * FULL),  # and a checkpoint inside its phase while it is replaced
        ("results", 2, 1_000, 2 * WEIGHTS + 2 * 2 * FULL),
        ("best", 1, 1_000, WEIGHTS + 2 * FULL),
        ("all", 1, 1_000, 3 * 2 * FULL),
    ],
)
def test_disk_is_what_stays_of_ended_trials_and_all_of_running_ones(
    keep: str, lanes: int, every: int, expected: int
) -> None:
    scale = {"keep": keep, "lanes": lanes, "checkpoint_every_steps": every}
    found = estimated(NO_CHOICE, sharing=False, scale=scale).disk_bytes
    assert expected <= found < expected + 3 * WEIGHTS, "beside those, slices of heads"


def test_what_trials_share_is_on_the_disk_once() -> None:
    assert 2 * FULL <= estimated(NO_CHOICE).disk_bytes < 2 * FULL + WEIGHTS


def test_memory_grows_with_the_batch_of_a_worker() -> None:
    small, large, split = (
        estimated(training={"batch_size": batch}, scale={"workers": workers}).worker_memory_bytes
        for batch, workers in ((8, 1), (32, 1), (32, 4))
    )
    assert small < large
    assert split == small


def test_points_on_more_seeds_are_trials_too() -> None:
    job = copy.deepcopy(JOB)
    job["search"] = {"space": SPACE, "trials": 5, "seeds": 3, "top": 2}
    checked = checked_job(job, "job.yaml")
    found = estimate(checked, CHECKED, PAST)
    assert found.trials == points.planned(checked.spec, {}, {}, exhausted=False) == 5 + 2 * 2 + 3
    assert [len(stage.trials) for stage in found.stages] == [5, 2, 2, 1, 1, 1]  # a baseline a seed
    assert found.distinct["baseline"] == 6


def test_a_single_point_on_more_seeds_is_not_confirmed() -> None:
    job = copy.deepcopy(JOB)
    job["search"] = {"seeds": 3}
    assert estimate(checked_job(job, "job.yaml"), CHECKED, PAST).trials == 3


def test_what_is_saved_is_said_in_words_and_in_json() -> None:
    found = estimated(NO_CHOICE).to_dict()
    assert found["saving"] == "2 of 3 trials reuse 1 prefix: 67% fewer steps"
    assert (found["trials_reusing"], found["prefixes_reused"]) == (2, 1)
    assert found["distinct"] == {"baseline": 1, "prune": 1, "measure": 1, "grow": 1, "learn": 1}
    [root] = found["stages"]
    assert (root["phase"], root["steps"], root["trials"], root["next"][0]["phase"]) == ("baseline", 100, 3, "prune")
    json.dumps(found)


def test_held_out_evaluations_inside_training_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_matrix_product_speed", lambda device: 1e9)
    rare, often = estimated(), estimated(training={"evaluate_every": 10})
    assert rare.seconds is not None and often.seconds is not None
    flops = 2 * (4 * 12 * 128 * 128 + 1024 * 128) + 4 * 4 * 128 * 128
    evaluation = 8192 * flops / (1e9 * module.TYPICAL_EFFICIENCY)
    assert often.seconds - rare.seconds == pytest.approx(14 * evaluation)


def test_a_calibration_trains_a_few_steps_of_the_job_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    job = copy.deepcopy(JOB)
    job |= {"data": {"seq_len": 16, "eval_tokens": 64, "probe_windows": 2}, "scale": {"workers": 2}}
    job["training"] = {"batch_size": 4}
    checked = checked_job(job, "job.yaml")
    threads = torch.get_num_threads()
    found = estimate(checked, check(checked), [], calibrate=True)
    assert found.seconds_from == "6 training steps measured here"
    assert found.seconds is not None and START_SECONDS < found.seconds < START_SECONDS + 3 * 140
    assert torch.get_num_threads() == threads
    measured = calibration.Calibration(step=0.5, rest=2.0, steps=6)
    monkeypatch.setattr(calibration, "measure", lambda *given, **asked: measured)
    single = checked_job({**job, "search": {}}, "job.yaml")
    found = estimate(single, CHECKED, [], calibrate=True)
    assert found.seconds == pytest.approx(START_SECONDS + 140 * 0.5 + 5 * 2.0)


def test_what_is_known_of_the_past_is_not_measured_again() -> None:
    checked = checked_job(JOB, "job.yaml")
    assert "run before" in estimate(checked, CHECKED, PAST, calibrate=True).seconds_from


def test_a_network_that_predicts_hidden_tokens_at_each_step_costs_what_it_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The published PNN with logits at 15% of the positions: 249.5 MFLOP a position in training."""
    monkeypatch.setattr(module, "_matrix_product_speed", lambda device: 1e12)
    found = [
        estimated(model={"name": "pnn-base"}, cycle={"baseline": {"steps": steps, "lr": 1e-4}}) for steps in (10, 20)
    ]
    fewer, more = (each.seconds for each in found)
    assert fewer is not None and more is not None and found[0].parameters == 53_707_323
    expected = 10 * 16 * 128 * 249.5e6 / (1e12 * module.TYPICAL_EFFICIENCY)
    assert more - fewer == pytest.approx(expected, rel=1e-3)


def test_memory_is_of_every_step_and_of_logits_at_labels_alone() -> None:
    def memory(**options: Any) -> int:
        return estimated(model={"name": "pnn-base", **options}).worker_memory_bytes

    tokens = 16 * 128
    logits = tokens * 0.15 * 30522 * 3 * 4
    assert memory() - memory(step_weights="last") == pytest.approx(3 * logits, rel=1e-6)
    more = memory(step_weights="last", num_steps=6) - memory(step_weights="last")
    assert more == pytest.approx(2 * tokens * 768 * 20 * 4)


def test_known_points_are_counted_exactly() -> None:
    """Three of a grid: 13 phases and 220 steps, where points at random would be alike by chance."""
    job = copy.deepcopy(JOB)
    job["search"] = {"space": {"cycle.prune.level": {"choice": [0.1, 0.2, 0.3]}}, "trials": 3}
    points: list[Values] = [{"cycle.prune.level": level} for level in (0.1, 0.2, 0.3)]
    found = estimate(checked_job(job, "job.yaml"), CHECKED, PAST, points=points)
    assert (found.trials, found.phases_shared, found.steps_shared) == (3, 13, 100 + 3 * 40)
    assert found.foreseen and not estimated(NO_CHOICE, past=PAST).foreseen
    fewer = estimate(checked_job(job, "job.yaml"), CHECKED, PAST, points=points[:2])
    assert (fewer.trials, fewer.phases_shared) == (2, 9)


def test_what_only_control_arms_run_is_named_apart() -> None:
    job = copy.deepcopy(JOB)
    job["search"] = {"controls": ["dense", "no_regrow"]}
    found = estimate(checked_job(job, "job.yaml"), CHECKED, PAST)
    own = {"baseline": 1, "prune": 1, "measure": 1, "grow": 1, "learn": 1}
    assert found.trials == 1 and found.distinct == {**own, "of control arms": 2}
    assert [len(stage.trials) for stage in found.stages] == [1]
