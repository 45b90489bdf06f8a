"""Phases whose weights are gone or damaged are run again when somebody needs them, and come out the same."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.helpers import cpu, run_all
from support.jobs import quick_plan

from raysweep.contracts.events import Event, Warned
from raysweep.errors import DiskFullError
from raysweep.job.plan import TrialPlan
from raysweep.records import atomic_folders as entries
from raysweep.records.schema import PhaseRecord
from raysweep.trial.phases import run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.store import phase_store as store_module
from raysweep.trial.store.phase_store import PhaseStore

TENSORS = "tensors.safetensors"


@pytest.fixture(scope="module")
def plan() -> TrialPlan:
    return quick_plan()


@pytest.fixture(scope="module")
def other() -> TrialPlan:
    """A trial that shares everything but the last phase."""
    changed = quick_plan(cycle__learn__lr=1e-3)
    shared = quick_plan()
    return TrialPlan(**{**shared.__dict__, "trial": 2, "phases": (*shared.phases[:-1], changed.phases[-1])})


@pytest.fixture(scope="module")
def finished(plan: TrialPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_all(plan, folder)
    return folder


@pytest.fixture(scope="module")
def expected(finished: Path, other: TrialPlan, tmp_path_factory: pytest.TempPathFactory) -> list[PhaseRecord]:
    """What the other trial records in an undamaged store."""
    folder = tmp_path_factory.mktemp("expected") / "store"
    shutil.copytree(finished, folder)
    return run_all(other, folder)


def collect(folder: Path, plan: TrialPlan, *indices: int) -> None:
    for index in indices:
        entries.collect(folder / plan.phases[index].key, TENSORS)


def damage(folder: Path, plan: TrialPlan, *indices: int) -> None:
    for index in indices:
        name = TENSORS if plan.phases[index].steps else "slices.safetensors"
        path = folder / plan.phases[index].key / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")


LOSSES: dict[str, tuple[Callable[[Path, TrialPlan], None], list[str]]] = {
    "the newest weights collected": (lambda folder, plan: collect(folder, plan, 4), ["learn"]),
    "all weights collected": (lambda folder, plan: collect(folder, plan, 0, 4, 8), ["learn", "baseline"]),
    "the newest weights damaged": (lambda folder, plan: damage(folder, plan, 4), ["learn"]),
    "what a prune removed damaged": (lambda folder, plan: damage(folder, plan, 5), ["prune@2"]),
    "what an early prune removed damaged": (lambda folder, plan: damage(folder, plan, 1), ["prune"]),
    "a record in the middle lost": (lambda folder, plan: shutil.rmtree(folder / plan.phases[3].key), []),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_lost_is_run_again_and_changes_no_record(
    loss: str, plan: TrialPlan, other: TrialPlan, finished: Path, expected: list[PhaseRecord], tmp_path: Path
) -> None:
    lose, again = LOSSES[loss]
    folder = tmp_path / "store"
    shutil.copytree(finished, folder)
    before = {phase.key: PhaseStore(finished).tensors(phase.key) for phase in plan.phases}
    lose(folder, plan)
    events: list[Event] = []
    runtime = Runtime(device=torch.device("cpu"), emit=events.append)
    records = list(run_trial(other, runtime, PhaseStore(folder)))
    assert [record.outcome() for record in records] == [record.outcome() for record in expected]
    told = [event.text for event in events if isinstance(event, Warned)]
    rerun = [text.split()[1] for text in told if "is run again: " in text]
    assert rerun == again, told
    for phase in plan.phases[:-1]:
        found = PhaseStore(folder).tensors(phase.key) if (folder / phase.key / TENSORS).exists() else None
        if found is not None:
            assert all(torch.equal(tensor, (before[phase.key] or {})[name]) for name, tensor in found.items())
    assert PhaseStore(folder).missing(other.phases[-1].key) is None


def test_a_phase_that_is_run_again_still_belongs_to_the_trial_that_ran_it_first(
    plan: TrialPlan, other: TrialPlan, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(finished, folder)
    collect(folder, plan, 0, 4)
    run_all(other, folder)
    assert [record.reused for record in run_all(plan, folder)] == [False] * len(plan.phases)


def test_weights_that_nobody_needs_are_not_made_again(plan: TrialPlan, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(finished, folder)
    collect(folder, plan, 0, 4, 8)
    events: list[Event] = []
    again = TrialPlan(**{**plan.__dict__, "trial": 2})
    records = list(run_trial(again, Runtime(device=torch.device("cpu"), emit=events.append), PhaseStore(folder)))
    assert all(record.reused for record in records) and events == []
    assert not (folder / plan.phases[4].key / TENSORS).exists()


@pytest.mark.slow
def test_a_control_arm_finds_its_way_back_too(tmp_path: Path) -> None:
    plan = quick_plan(search__controls=["no_regrow"])
    expected = run_all(plan, tmp_path / "whole")
    folder = tmp_path / "store"
    own = len(plan.phases)
    trial = run_trial(plan, cpu(), PhaseStore(folder))
    records = [next(trial) for _ in range(own)]
    trial.close()
    collect(folder, plan, 0, 4, 8)
    records = run_all(plan, folder)
    assert [record.outcome() for record in records] == [record.outcome() for record in expected]
    assert len(records) > own


@pytest.mark.parametrize("written", [0, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2, 3))])
def test_a_disk_that_fills_up_ends_a_trial_that_can_be_resumed(
    plan: TrialPlan, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """It fills up at each of the first writes of weights: checkpoints inside phases, and phases."""
    expected = run_all(plan, finished)
    plan = replace(plan, checkpoint_every_steps=3)
    count = itertools.count()

    def save_or_fail(tensors: Any, path: Path) -> None:
        if next(count) >= written:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "save_file", save_or_fail)
        with pytest.raises(DiskFullError, match="no space is left for .*resume the sweep"):
            run_all(plan, tmp_path)
    assert entries.leftovers(tmp_path) == []
    store = PhaseStore(tmp_path)
    assert all(store.missing(phase.key) is None for phase in plan.phases if store.find(phase.key) is not None)
    assert [record.outcome() for record in run_all(plan, tmp_path)] == [record.outcome() for record in expected]
