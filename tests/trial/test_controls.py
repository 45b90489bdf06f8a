"""Control arms: each changes one thing, sees the same data, and shares what it has in common with the trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.helpers import cpu, run_all
from support.jobs import quick_plan

from raysweep.contracts.events import ControlFailed, Event
from raysweep.job.plan import TrialPlan
from raysweep.records.schema import PhaseRecord
from raysweep.trial.phases import _TrialRunner
from raysweep.trial.runtime import Runtime
from raysweep.trial.store.phase_store import PhaseStore

ARMS = ["dense", "no_regrow", "random_random", "from_scratch_small"]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialPlan, Path, list[PhaseRecord]]:
    plan, folder = quick_plan(cycle__cycles=2, search={"controls": ARMS}), tmp_path_factory.mktemp("controls")
    return plan, folder, run_all(plan, folder)


Trial = tuple[TrialPlan, Path, list[PhaseRecord]]


def of(trial: Trial, arm: str) -> list[PhaseRecord]:
    return [record for record in trial[2] if record.arm == arm]


def test_the_trials_own_phases_come_first_and_are_what_they_are_without_controls(trial: Trial, tmp_path: Path) -> None:
    alone = run_all(quick_plan(**{"cycle__cycles": 2}), tmp_path)
    own = trial[2][: len(alone)]
    assert all(record.arm == "main" for record in own)
    assert [record.outcome() for record in own] == [record.outcome() for record in alone]


def test_each_arm_runs_only_what_it_does_not_share(trial: Trial) -> None:
    assert [r.phase for r in of(trial, "dense")] == ["learn", "learn"]
    assert [r.phase for r in of(trial, "no_regrow")] == ["learn", "prune", "measure", "learn"]
    assert [r.phase for r in of(trial, "random_random")] == ["prune", "measure", "grow", "learn"] * 2
    assert [r.phase for r in of(trial, "from_scratch_small")] == ["baseline"]
    assert not any(record.reused for record in trial[2])


def test_dense_keeps_every_head_and_takes_the_same_steps(trial: Trial) -> None:
    own = [record for record in of(trial, "main") if record.phase == "learn"]
    for record, mine in zip(of(trial, "dense"), own, strict=True):
        assert record.active_heads == 16 and (record.steps, record.tokens) == (mine.steps, mine.tokens)


def test_no_regrow_ends_with_fewer_heads_and_random_random_with_as_many(trial: Trial) -> None:
    own = of(trial, "main")[-1].active_heads
    assert of(trial, "no_regrow")[-1].active_heads < own == of(trial, "random_random")[-1].active_heads
    assert {r.decision["strategy"] for r in of(trial, "random_random") if r.decision} == {"random"}


def test_a_small_model_has_the_trials_heads_in_each_layer(trial: Trial) -> None:
    plan, folder, records = trial
    (small,), own = of(trial, "from_scratch_small"), of(trial, "main")
    assert [sum(h >= 0 for h in row) for row in small.head_map] == [
        sum(h >= 0 for h in row) for row in own[-1].head_map
    ]
    assert small.params == own[-1].params and small.steps == sum(record.steps for record in own)


def test_all_arms_see_the_same_data_in_the_same_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from raysweep.trial.training import loop as training

    seen: dict[tuple[int, int], list[Any]] = {}
    original = training.Training._accumulate

    def spy(self: Any, wrapped: Any, step: int) -> Any:
        if self.schedule.steps == 7:  # learn
            seen.setdefault((self.order.seed, step), []).append(self.order.indices(step).tolist())
        return original(self, wrapped, step)

    monkeypatch.setattr(training.Training, "_accumulate", spy)
    run_all(quick_plan(cycle__cycles=1, cycle__learn__steps=7, search={"controls": ARMS[:3]}), tmp_path)
    assert len(seen) == 7 and all(len(batches) == 4 for batches in seen.values())
    assert all(batch == batches[0] for batches in seen.values() for batch in batches)


def test_a_finished_trial_with_controls_is_found_whole_in_the_store(trial: Trial) -> None:
    plan, folder, records = trial
    assert [record.outcome() for record in run_all(plan, folder)] == [record.outcome() for record in records]


def test_a_halted_trial_takes_its_controls_no_further_than_its_result(tmp_path: Path) -> None:
    strict: dict[str, Any] = {
        "cycle__regression": {"ratio": 1.0, "margin": 0.0},
        "cycle__learn__lr": 3.0,
        "search": {"controls": ["dense"]},
    }
    records = run_all(quick_plan(cycle__cycles=3, cycle__learn__steps=5, **strict), tmp_path)
    assert [record.phase for record in records] == ["baseline", "prune", "measure", "grow", "learn"]


def test_a_plateau_is_compared_with_as_many_dense_cycles(tmp_path: Path) -> None:
    rules: dict[str, Any] = {"cycle__plateau": {"patience": 1, "min_gain": 0.9}, "search": {"controls": ["dense"]}}
    records = run_all(quick_plan(cycle__cycles=3, **rules), tmp_path)
    assert max(record.cycle for record in records) == 1
    assert [(record.arm, record.phase) for record in records[-1:]] == [("dense", "learn")]


def test_the_state_after_an_arm_is_that_arms(trial: Trial) -> None:
    plan, folder, _ = trial
    runner = _TrialRunner.of(plan, cpu(), PhaseStore(folder))
    runner.skip(plan.controls["dense"][-1])
    state = runner._state()
    assert state.head_map.active == 16
    tensors = PhaseStore(folder).tensors(plan.controls["dense"][-1].key)
    assert tensors is not None
    assert all(torch.equal(p.data, tensors[f"model/{n}"]) for n, p in state.model.network.named_parameters())


def test_an_arm_that_cannot_be_carried_out_ends_no_trial(tmp_path: Path) -> None:
    """Three cycles of 40% without regrowth would need more heads than there are."""
    told: list[Event] = []
    runtime = Runtime(device=torch.device("cpu"), emit=told.append)
    changes: dict[str, Any] = {
        "cycle__cycles": 3,
        "cycle__prune__level": 0.4,
        "cycle__grow__ratio": 1.0,
        "cycle__prune__grace_cycles": 0,
    }
    records = run_all(quick_plan(**changes, search={"controls": ["no_regrow", "dense"]}), tmp_path, runtime)
    (failure,) = [event for event in told if isinstance(event, ControlFailed)]
    assert failure.arm == "no_regrow" and "may go" in failure.error
    assert [record.phase for record in records if record.arm == "main"][-1] == "learn"
    assert [record.arm for record in records][-1] == "dense"
