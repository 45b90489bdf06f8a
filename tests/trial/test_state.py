"""A state restored from the phase store after any phase is the state that was in memory, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import causal, cpu, some_tokens
from support.jobs import nano_plan, quick_plan

from raysweep.contracts import HeadSlice
from raysweep.job.plan import TrialPlan
from raysweep.networks.plasticity.objective import losses_of, mean_loss
from raysweep.networks.plasticity.surgery import absent_slices, slice_name
from raysweep.trial.data.trial_data import trial_data
from raysweep.trial.phases import _TrialRunner
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import PhaseStore


@dataclass(frozen=True)
class Seen:
    """All that a state is, copied; and what one more training step makes of it."""

    tensors: dict[str, torch.Tensor]
    plain: dict[str, Any]
    after_a_step: dict[str, torch.Tensor]


def look_at(state: TrialState) -> Seen:
    tensors = copies(state)
    plain = {
        "head_map": state.head_map.to_lists(),
        "reference_entropy": None if state.reference_entropy is None else state.reference_entropy.tobytes(),
        "new_heads": state.new_heads,
        "new_slices": state.new_slices,
        "stored": digests(state.stored),
        "changed": digests(state.changed),
        "history": list(state.history),
        "gates": [None if gate.values is None else gate.values.tolist() for gate in state.model.gates],
    }
    tokens = some_tokens(2, 16)
    state.model.train()
    mean_loss(losses_of(state.model, causal(tokens)), causal(tokens).labels).backward()
    state.optimizer.step(0.01, {0: 3.0})  # shows what is frozen and what is favoured
    state.optimizer.zero_grad()
    after_a_step = copies(state)
    state.load_tensors(tensors)
    return Seen(tensors, plain, after_a_step)


def digests(slices: dict[HeadSlice, torch.Tensor]) -> list[tuple[str, str]]:
    found = {
        slice_name(part): hashlib.sha256(w.contiguous().numpy().tobytes()).hexdigest() for part, w in slices.items()
    }
    return sorted(found.items())


def copies(state: TrialState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def states_in_memory(plan: TrialPlan, folder: Path) -> Iterator[tuple[str, TrialState]]:
    """Run a trial and hand out its state after each phase."""
    trial = _TrialRunner.of(plan, cpu(), PhaseStore(folder))
    for phase in plan.phases:
        trial.record_of(phase)
        assert trial.state is not None
        yield phase.key, trial.state


def restored(plan: TrialPlan, key: str, folder: Path) -> TrialState:
    return TrialState.restored(plan, key, PhaseStore(folder), trial_data(plan).facts, cpu())


def assert_equal(found: Seen, expected: Seen, label: str) -> None:
    assert str(found.plain) == str(expected.plain), label
    for name in ("tensors", "after_a_step"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert set(ours) == set(theirs), label
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs), (label, name)


GROUP_BY_GROUP = {"cycle__prune__level": 0.6, "cycle__prune__strategy": "random", "cycle__grow__ratio": 0.5,
                  "cycle__grow__init": "small_random", "cycle__prune__grace_cycles": 0}  # fmt: skip
TRIALS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "opt without a baseline": {"model__name": "opt-nano", "cycle__baseline": None},
    "llama with groups gone": {"model__name": "llama-nano", **GROUP_BY_GROUP},
    "no learning between cycles": {"cycle__learn": None, "cycle__grow__init": "small_random"},
    "no training at all": {"cycle__learn": None, "cycle__baseline": None, "cycle__grow__init": "small_random"},
    "no regrowth": {"cycle__grow": None},
    "gradmax": {"cycle__grow__init": "gradmax", "cycle__learn": None},
    "rewind over four cycles": {
        "cycle__grow__init": "rewind",
        "cycle__cycles": 4,
        "cycle__prune__grace_cycles": 0,
        "cycle__prune__strategy": "random",
        "cycle__prune__level": 0.25,
        "cycle__grow__strategy": "random",
    },
    "rewind of llama groups": {
        "model__name": "llama-nano",
        **GROUP_BY_GROUP,
        "cycle__grow__init": "rewind",
        "cycle__learn": None,
    },
    "split of opt": {"model__name": "opt-nano", "cycle__grow__init": "split", "cycle__learn": None},
    "split of llama groups": {"model__name": "llama-nano", **GROUP_BY_GROUP, "cycle__grow__init": "split"},
    "gradmax of llama groups": {"model__name": "llama-nano", **GROUP_BY_GROUP, "cycle__grow__init": "gradmax"},
}


ALWAYS = ("gpt2",)


@pytest.mark.parametrize(
    "trial", [trial if trial in ALWAYS else pytest.param(trial, marks=pytest.mark.slow) for trial in TRIALS]
)
def test_restoring_after_any_phase_gives_the_state_of_the_uninterrupted_run(trial: str, tmp_path: Path) -> None:
    plan = quick_plan(**TRIALS[trial])
    seen = {key: look_at(state) for key, state in states_in_memory(plan, tmp_path)}
    for phase in plan.phases:
        assert_equal(look_at(restored(plan, phase.key, tmp_path)), seen[phase.key], phase.label)
    assert len(seen) == len(plan.phases)
    kinds = {phase.kind: seen[phase.key] for phase in plan.phases}
    if "grow" in kinds:
        assert kinds["grow"].plain["new_heads"]
    assert any(-1 in row for row in kinds["prune"].plain["head_map"])


def test_restoring_runs_no_initializer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = quick_plan(cycle__grow__init="gradmax", cycle__learn=None)
    *_, (key, state) = states_in_memory(plan, tmp_path)
    expected = copies(state)
    monkeypatch.setattr("raysweep.trial.state.insert", None)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in restored(plan, key, tmp_path).tensors().items())


def test_prune_and_grow_store_slices_alone(tmp_path: Path) -> None:
    """A checkpoint of theirs is as large as the heads they touched, not as the model."""
    plan = nano_plan(cycle__cycles=1, cycle__grow__init="split")
    for _ in states_in_memory(plan, tmp_path):
        pass
    sizes = {p.kind: sum(f.stat().st_size for f in (tmp_path / p.key).glob("*.safetensors")) for p in plan.phases}
    head = 4 * (4 * 128 * 16 + 3 * 16)  # bytes of one
    assert 10 * head <= sizes["prune"] < 10.5 * head  # names take a little
    assert 4 * head <= sizes["grow"] < 4.5 * head + 4 * head / 4  # and the output weights of four donors
    assert sizes["learn"] > 10 * sizes["prune"] and sizes["measure"] == 0
    store = PhaseStore(tmp_path)
    assert all((store.tensors(p.key) is not None) == (p.kind in ("baseline", "learn")) for p in plan.phases)
    with pytest.raises(AssertionError, match="no slices"):
        store.slices(plan.phases[0].key)


def test_the_trials_here_reach_a_group_that_goes_and_returns(tmp_path: Path) -> None:
    """Else the trial with grouped queries would not show that shared keys and values are restored."""
    plan = quick_plan(**TRIALS["llama with groups gone"])
    grown_roles: set[str] = set()
    absent_roles: set[str] = set()
    for _, state in states_in_memory(plan, tmp_path):
        grown_roles |= {part.role for part in state.new_slices}
        absent_roles |= {part.role for part in absent_slices(state.model.sites, state.head_map)}
    assert {"key", "value"} <= grown_roles & absent_roles


def test_absent_slices_differ_from_first_weights_where_training_moved_them_before_the_prune(tmp_path: Path) -> None:
    """Restoring by decisions alone would lose them: tensors of the last training phase carry them."""
    plan = quick_plan()
    *_, (key, _) = states_in_memory(plan, tmp_path)
    state = restored(plan, key, tmp_path)
    first = TrialState.first(plan, trial_data(plan).facts, cpu())
    part = absent_slices(state.model.sites, state.head_map)[0]
    ours, theirs = (
        s.model.network.get_parameter(part.parameter).data.narrow(part.dim, part.start, part.length)
        for s in (state, first)
    )
    assert not torch.equal(ours, theirs)


def test_the_entropy_of_heads_that_were_absent_before_the_prune_is_unknown(tmp_path: Path) -> None:
    plan = quick_plan()
    before: list[list[int]] = []
    for phase, (_, state) in zip(plan.phases, states_in_memory(plan, tmp_path), strict=True):
        if phase.kind == "prune" and phase.cycle == 2:
            assert state.reference_entropy is not None
            assert np.array_equal(np.isnan(state.reference_entropy), np.array(before) == -1)
            assert np.isnan(state.reference_entropy).any()
        before = state.head_map.to_lists()


def test_a_first_state_has_all_heads_and_the_weights_of_its_seed() -> None:
    first, again, other = (
        TrialState.first(quick_plan(seed=seed), trial_data(quick_plan()).facts, cpu()) for seed in (1, 1, 2)
    )
    assert first.head_map.active == 16 and first.head_map.to_lists() == [[0] * 8] * 2
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in first.tensors().items())
    assert not all(torch.equal(tensor, other.tensors()[name]) for name, tensor in first.tensors().items())
    assert not any(name.startswith("optimizer/") for name in first.tensors())


def test_a_phase_that_is_not_in_the_store_can_not_be_restored(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not in the store"):
        restored(quick_plan(), quick_plan().phases[0].key, tmp_path)
