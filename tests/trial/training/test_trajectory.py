"""New heads are followed through learning: what is recorded is true, training does not notice, kills change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import CAUSAL, cpu, run_all
from support.jobs import quick_plan
from support.planted import oldest_and_newest

from raysweep.job.plan import TrialPlan
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.surgery import snapshot
from raysweep.records.schema import PhaseRecord
from raysweep.trial.data.trial_data import trial_data
from raysweep.trial.measures.evaluation import shared_batches
from raysweep.trial.phases import _TrialRunner, run_trial
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import Partial, PhaseStore
from raysweep.trial.training.loop import Training
from raysweep.trial.training.trajectory import Trajectory


def plan_of(**changes: Any) -> TrialPlan:
    return quick_plan(
        **{"cycle__cycles": 1, "cycle__learn__steps": 14, "cycle__learn__gate_warmup_steps": 7,
           "cycle__learn__trajectory_every": 3, "scale__checkpoint_every_steps": 4} | changes
    )  # fmt: skip


def state_after(plan: TrialPlan, folder: Path, index: int) -> TrialState:
    facts = trial_data(plan).facts
    return TrialState.restored(plan, plan.phases[index].key, PhaseStore(folder), facts, cpu())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialPlan, Path, list[PhaseRecord]]:
    plan, folder = plan_of(), tmp_path_factory.mktemp("run")
    return plan, folder, run_all(plan, folder)


Run = tuple[TrialPlan, Path, list[PhaseRecord]]


def test_points_are_at_the_start_at_every_so_many_steps_and_at_the_end(run: Run) -> None:
    learn = run[2][-1]
    assert [point["step"] for point in learn.trajectory] == [0, 3, 6, 9, 12, 14]
    assert all(record.trajectory == [] for record in run[2][:-1])
    assert learn.decision is None and run[2][3].decision is not None
    grown = run[2][3].decision["heads"]
    for point in learn.trajectory:
        assert [head["slot"] for head in point["heads"]] == grown
        assert all(
            set(h) == {"slot", "gate", "weight_norm", "update", "entropy", "output_norm"} for h in point["heads"]
        )


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "expected"), [(8, [0, 2, 4, 6, 8]), (2, [0, 1, 2]), (9, [0, 2, 4, 6, 8, 9])])
def test_by_default_a_point_is_at_most_a_quarter_of_the_phase_away(
    steps: int, expected: list[int], tmp_path: Path
) -> None:
    plan = quick_plan(cycle__cycles=1, cycle__learn__steps=steps)
    assert [point["step"] for point in run_all(plan, tmp_path)[-1].trajectory] == expected


def test_first_and_last_points_are_those_of_the_model_before_and_after(run: Run) -> None:
    plan, folder, records = run
    windows = trial_data(plan).train[: plan.data["probe_windows"]]
    points = records[-1].trajectory
    for index, point in ((3, points[0]), (4, points[-1])):
        state = state_after(plan, folder, index)
        statistics = probe(
            state.model, shared_batches(windows, 4, CAUSAL, cpu()), state.head_map, lambda tensor: tensor
        )
        for head in point["heads"]:
            slot = tuple(head["slot"])
            assert head["entropy"] == pytest.approx(statistics.entropy[slot], rel=1e-6)
            assert head["output_norm"] == pytest.approx(statistics.output_norm[slot], rel=1e-5, abs=1e-9)
            assert head["weight_norm"] == pytest.approx(statistics.magnitude[slot], rel=1e-6)
    assert all(head["output_norm"] == 0 for head in points[0]["heads"])  # zero_output
    assert all(head["update"] is None for head in points[0]["heads"])  # nothing is known of it yet
    assert all(head["output_norm"] > 0 and head["update"] > 0 for head in points[-1]["heads"])


def test_gates_are_those_of_the_warm_up(run: Run) -> None:
    gates = [{head["gate"] for head in point["heads"]} for point in run[2][-1].trajectory]
    assert gates == [{0.1 + 0.9 * step / 7} for step in (0, 3, 6)] + [{1.0}] * 3


@pytest.mark.slow
def test_updates_are_distances_between_points(tmp_path: Path) -> None:
    """With a single step between the two points, the update is how far the phase has moved the head."""
    plan = plan_of(cycle__learn__steps=5, cycle__learn__trajectory_every=5, cycle__learn__gate_warmup_steps=0)
    points = run_all(plan, tmp_path)[-1].trajectory
    before, after = state_after(plan, tmp_path, 3), state_after(plan, tmp_path, 4)
    for head in points[1]["heads"]:
        parts = before.model.sites[head["slot"][0]].head_slices(head["slot"][1])
        moved = [b - a for a, b in zip(snapshot(before.model, parts), snapshot(after.model, parts), strict=True)]
        expected = sum(float(part.double().square().sum()) for part in moved) ** 0.5
        assert head["update"] == pytest.approx(expected, rel=1e-9) and expected > 0


@pytest.mark.slow
def test_following_heads_changes_no_bit_of_training(run: Run, tmp_path: Path) -> None:
    plan, folder, records = run
    for every in (1, 14):
        other = plan_of(cycle__learn__trajectory_every=every)
        learn = run_all(other, tmp_path / str(every))[-1]
        assert (learn.loss, learn.curve) == (records[-1].loss, records[-1].curve)
        ours = PhaseStore(tmp_path / str(every)).tensors(other.phases[-1].key)
        theirs = PhaseStore(folder).tensors(plan.phases[-1].key)
        assert ours is not None and theirs is not None and set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_training_that_nobody_follows_ends_with_the_same_bits(run: Run, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(Trajectory, "follow", lambda self, step: None)
    unfollowed = run_all(run[0], tmp_path)[-1]
    assert unfollowed.trajectory == [] and unfollowed.loss == run[2][-1].loss
    assert unfollowed.curve == run[2][-1].curve


class KilledError(Exception):
    pass


class DyingStore(PhaseStore):
    """Dies right after writing a checkpoint at a step."""

    step = 0

    def save_partial(self, key: str, partial: Partial) -> None:
        super().save_partial(key, partial)
        if partial.step == self.step and partial.trajectory:
            raise KilledError


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 8, 12])
def test_a_phase_killed_between_points_records_what_an_unbroken_one_does(run: Run, step: int, tmp_path: Path) -> None:
    plan, _, records = run
    store = DyingStore(tmp_path)
    store.step = step
    with pytest.raises(KilledError):
        list(run_trial(plan, cpu(), store))
    resumed = run_all(plan, tmp_path)
    assert resumed[-1].trajectory == records[-1].trajectory
    assert [record.outcome() for record in resumed] == [record.outcome() for record in records]


@pytest.mark.slow
def test_nothing_grown_is_nothing_to_follow(tmp_path: Path) -> None:
    assert run_all(plan_of(cycle__grow__ratio=0.0), tmp_path)[-1].trajectory == []


def test_a_point_comes_before_the_next_step_and_after_a_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    plan = plan_of(cycle__learn__steps=4, cycle__learn__gate_warmup_steps=2)
    trial = _TrialRunner.of(plan, cpu(), PhaseStore(tmp_path))
    for phase in plan.phases[:4]:
        trial.record_of(phase)
    original = Training.run

    def listening(self: Training, start: int = 0) -> Any:
        self.on_step = lambda step: seen.append(("step", step))
        self.between_steps = lambda step: seen.append(("checkpoint", step))
        return original(self, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "run", listening)
        trial.record_of(plan.phases[4])
    between = [entry for step in (1, 2, 3) for entry in (("checkpoint", step), ("step", step))]
    assert seen == [("step", 0), *between, ("step", 4)]


def test_a_regrown_slot_says_when_it_went_and_when_and_how_it_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysweep.strategies.grow.random.Grower.__call__", oldest_and_newest())
    plan = quick_plan(
        cycle__cycles=3, cycle__prune__strategy="random", cycle__grow__strategy="random", cycle__prune__grace_cycles=0,
        cycle__grow__init="rewind", cycle__learn=None, cycle__baseline=None,
    )  # fmt: skip
    gone: dict[tuple[int, ...], int] = {}
    waited = set()
    for record in run_all(plan, tmp_path):
        if record.phase == "prune" and record.decision:
            gone |= {tuple(slot): record.cycle for slot in record.decision["heads"]}
        if record.phase == "grow" and record.decision:
            assert record.regrown == [
                {"slot": slot, "pruned_in": gone[tuple(slot)], "grown_in": record.cycle, "init": "rewind"}
                for slot in record.decision["heads"]
            ]
            waited |= {record.cycle - gone[tuple(slot)] for slot in record.decision["heads"]}
        else:
            assert record.regrown is None
    assert {0, 1} <= waited  # some came back in the cycle they went in, some later
    assert np.all(np.array(list(waited)) >= 0)
