"""Collecting checkpoints never takes the best, nor what something refers to; and a sweep can go on as before.

The faults of others that this must not have: a policy that left only the last trial's checkpoints (Determined #7523),
and one that took checkpoints that had been registered elsewhere (Determined #4316).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.inline import InlineDriver, new_sweep, search_job
from support.jobs import checked_job
from support.sweeps import contents, job_mapping, phase_record, trial_record

from raysweep import api
from raysweep.errors import ArchiveError
from raysweep.job.plan import Fingerprints
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord, Proposal, Status
from raysweep.trial.exports.load import load_model
from raysweep.trial.store.garbage import Keep, Survey, collect, survey
from raysweep.trial.store.names import TENSORS
from raysweep.trial.store.phase_store import PhaseOutcome, PhaseStore

WEIGHTS = {"w": torch.zeros(100)}
LABELS = ("baseline", "prune", "measure", "grow", "learn", "prune@2", "measure@2", "grow@2", "learn@2")


def empty_sweep(results: Path, trials: int = 3, sharing: bool = True) -> SweepFolder:
    job = checked_job(job_mapping(trials=trials), "heads.yaml")
    return SweepFolder.create(results, job, "s", {"fingerprints": {"model": "m", "data": "d"}, "sharing": sharing})


def values_of(trial: int) -> dict[str, Any]:
    return {"cycle.learn.new_head_lr_multiplier": 1.0 + trial}


def add(
    folder: SweepFolder, trial: int, losses: Mapping[str, float], status: Status | None = "COMPLETE",
    shared: Mapping[str, int] | None = None, **proposed: Any,
) -> None:  # fmt: skip
    """Add a trial with phases as labels say; `shared` names those that another trial ran, and which."""
    folder.add_proposal(
        Proposal(trial=trial, values=values_of(trial), attempt=1, seed=0, **{"proposer": "tpe", **proposed})
    )
    store, records = PhaseStore(folder.store_of(trial)), []
    for label, loss in losses.items():
        owner = (shared or {}).get(label, trial)
        record = replace(phase_record(trial, label, 2.0, owner != trial), key=f"{label}-of-{owner}", loss=loss)
        records.append(record)
        folder.add_phase(record)
        if owner == trial:
            history = [earlier.key for earlier in records]
            outcome = PhaseOutcome(trial=trial, record=record.to_dict(), reference_entropy=None, history=history)
            trained, changed = record.phase in ("baseline", "learn"), record.phase in ("prune", "grow")
            store.save(record.key, outcome, WEIGHTS if trained else None, WEIGHTS if changed else None)
    if status is not None:
        folder.add_trial(replace(trial_record(trial, status, records, values=values_of(trial)), proposer="tpe"))


def collected(folder: SweepFolder, **keep: int) -> list[str]:
    """Return the keys of the checkpoints that would go."""
    return [entry.path.parent.name for entry in survey(folder, Keep(**keep)).collected]


NONE_OF_A_TRIAL = {"trial_best": 0, "trial_latest": 0}


MOMENTS = {f"optimizer/{name}": weights.clone() for name, weights in WEIGHTS.items()}


def gone(folder: SweepFolder) -> list[str]:
    return [f"{entry.path.parent.name}/{entry.path.name}" for entry in survey(folder, Keep()).collected]


def test_moments_go_with_the_last_trial_that_may_train_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, and no weights with them; a prune or a growth leaves none."""
    monkeypatch.setitem(globals(), "WEIGHTS", {**WEIGHTS, **MOMENTS})
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 3.0, "prune": 3.5, "learn": 2.0})
    assert gone(folder) == ["learn-of-1/moments.safetensors"], "the next trial may begin with the baseline"
    add(folder, 2, {"baseline": 3.0, "prune": 3.5}, status=None, shared={"baseline": 1})
    assert gone(folder) == ["learn-of-1/moments.safetensors"], "trial 2 may train on the baseline"
    folder.add_trial(trial_record(2, "DIVERGED", values=values_of(2)))
    assert gone(folder) == ["baseline-of-1/moments.safetensors", "learn-of-1/moments.safetensors"]
    collect(survey(folder, Keep()))
    store = PhaseStore(folder.store)
    tensors = store.tensors("learn-of-1")
    assert tensors is not None and list(tensors) == ["w"]
    assert store.missing("learn-of-1", moments=False) is None and store.missing("learn-of-1") == "learn-of-1"
    assert gone(folder) == []


# Policies.


def test_of_each_trial_the_latest_and_the_best_stay(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 3.0, "learn": 1.5, "learn@2": 1.0, "learn@3": 2.0})
    add(folder, 2, {"baseline": 3.0, "learn": 2.5, "learn@2": 2.6, "learn@3": 2.7})
    assert collected(folder) == ["baseline-of-1", "baseline-of-2", "learn-of-1", "learn@2-of-2"]
    assert collected(folder, trial_latest=2) == ["baseline-of-1", "baseline-of-2", "learn-of-1"]
    assert collected(folder, trial_best=2) == ["baseline-of-1", "baseline-of-2"]
    assert collected(folder, **NONE_OF_A_TRIAL) == [
        "baseline-of-1", "baseline-of-2", "learn-of-1", "learn-of-2", "learn@2-of-1", "learn@2-of-2", "learn@3-of-2",
    ]  # fmt: skip


def test_the_best_trials_stay_whichever_they_are(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=4)
    for trial, loss in enumerate((2.0, 1.0, 3.0, 1.5), start=1):
        add(folder, trial, {"baseline": 4.0, "learn": loss})
    gone = [f"{phase}-of-{trial}" for phase in ("baseline", "learn") for trial in (1, 2, 3, 4)]
    assert collected(folder, **NONE_OF_A_TRIAL) == [key for key in gone if key != "learn-of-2"]
    assert collected(folder, sweep_best=2, **NONE_OF_A_TRIAL) == [
        key for key in gone if key not in ("learn-of-2", "learn-of-4")
    ]


def test_the_best_cannot_be_given_up() -> None:
    with pytest.raises(AssertionError, match="the best trial always stays"):
        survey(None, Keep(sweep_best=0))  # type: ignore[arg-type]


def test_what_the_result_of_a_best_trial_is_restored_from_stays(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 2.0, "prune": 1.0, "measure": 1.0, "grow": 1.0})  # no training after it
    add(folder, 2, {"baseline": 2.0, "learn": 3.0})
    assert collected(folder, **NONE_OF_A_TRIAL) == ["baseline-of-2", "learn-of-2"]


def test_the_result_of_a_halted_trial_stays_beside_its_last_phase(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=1)
    add(folder, 1, {"baseline": 3.0, "learn": 1.0, "learn@2": 2.0, "learn@3": 9.0}, status=None)
    own = folder.phases()
    halted = {"rule": "regression", "cycle": 3, "kept": "learn-of-1", "reason": ""}
    folder.add_trial(replace(trial_record(1, "COMPLETE", own, values=values_of(1)), halted=halted))
    assert collected(folder, **NONE_OF_A_TRIAL) == ["baseline-of-1", "learn@2-of-1"]


def test_the_whole_front_stays(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=3)
    goals = {1: {"loss": 1.0, "params": 9.0}, 2: {"loss": 2.0, "params": 1.0}, 3: {"loss": 3.0, "params": 5.0}}
    for trial, objectives in goals.items():
        add(folder, trial, {"learn": objectives["loss"]}, status=None)
        record = trial_record(trial, "COMPLETE", [phase for phase in folder.phases() if phase.trial == trial])
        folder.add_trial(replace(record, objectives=objectives, values=values_of(trial)))
    assert collected(folder, **NONE_OF_A_TRIAL) == ["learn-of-3"]


def test_a_trial_that_misses_a_constraint_is_no_best_one(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    for trial, (loss, missed) in enumerate([(1.0, 0.5), (2.0, -0.5)], start=1):
        add(folder, trial, {"learn": loss}, status=None)
        record = trial_record(trial, "COMPLETE", [phase for phase in folder.phases() if phase.trial == trial])
        folder.add_trial(
            replace(record, objectives={"loss": loss}, violations={"rule": missed}, values=values_of(trial))
        )
    assert collected(folder, **NONE_OF_A_TRIAL) == ["learn-of-1"]


@pytest.mark.parametrize("status", [None, "FAILED", "CANCELLED"])
def test_a_trial_that_may_go_on_keeps_all(tmp_path: Path, status: Status | None) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0})
    add(folder, 2, {"baseline": 3.0, "learn": 2.0, "learn@2": 2.5}, status=status)
    assert collected(folder, **NONE_OF_A_TRIAL) == ["baseline-of-1"]


@pytest.mark.parametrize("status", ["STOPPED", "DIVERGED"])
def test_a_trial_that_ended_early_keeps_as_many_as_others(tmp_path: Path, status: Status) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0})
    add(folder, 2, {"baseline": 3.0, "learn": 2.0, "learn@2": 2.5}, status=status)
    assert collected(folder) == ["baseline-of-1", "baseline-of-2"]
    assert collected(folder, **NONE_OF_A_TRIAL) == ["baseline-of-1", "baseline-of-2", "learn-of-2", "learn@2-of-2"]


def test_what_a_fork_begins_with_stays(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0, "learn@2": 2.5})
    add(folder, 2, {"baseline": 3.0, "learn": 1.0})
    assert "learn-of-1" in collected(folder, **NONE_OF_A_TRIAL)
    add(folder, 3, {}, status=None, proposer="fork", of=1)
    assert collected(folder, **NONE_OF_A_TRIAL) == ["baseline-of-2"]


def test_what_was_exported_stays(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0, "prune@2": 2.0})
    add(folder, 2, {"baseline": 3.0, "learn": 1.0})
    folder.add_export(1, "prune@2-of-1", tmp_path / "out")
    assert collected(folder, **NONE_OF_A_TRIAL) == ["baseline-of-1", "baseline-of-2"]


def test_what_trials_share_stays(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=3)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0})
    add(folder, 2, {"baseline": 3.0, "learn": 1.0}, shared={"baseline": 1})
    add(folder, 3, {"baseline": 3.0, "learn": 1.5})
    assert collected(folder, **NONE_OF_A_TRIAL) == ["baseline-of-3", "learn-of-1", "learn-of-3"]


def test_baselines_stay_while_the_search_goes_on(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0})
    assert collected(folder) == []


def test_nothing_goes_that_no_record_knows(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=1)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0})
    outcome = PhaseOutcome(trial=1, record={"phase": "learn"}, reference_entropy=None, history=["strange"])
    PhaseStore(folder.store).save("strange", outcome, WEIGHTS)
    assert collected(folder) == ["baseline-of-1"]


def test_each_trial_of_an_unshared_sweep_has_its_own(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=2, sharing=False)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0})
    add(folder, 2, {"baseline": 3.0, "learn": 1.0})
    found = survey(folder, Keep(**NONE_OF_A_TRIAL))
    assert [str(entry.path.relative_to(folder.store)) for entry in found.collected] == [
        f"trial-1/baseline-of-1/{TENSORS}", f"trial-1/learn-of-1/{TENSORS}", f"trial-2/baseline-of-2/{TENSORS}",
    ]  # fmt: skip


def test_remains_go_unless_a_trial_may_go_on_from_them(tmp_path: Path) -> None:
    folder = empty_sweep(tmp_path, trials=2)
    add(folder, 1, {"baseline": 3.0, "learn": 2.0})
    for name in ("k.damaged", ".part-x", "other.partial", "learn-of-1.partial"):
        (folder.store / name).mkdir()
        (folder.store / name / TENSORS).write_bytes(bytes(1000))

    def remains() -> dict[str, tuple[str, int]]:
        return {
            e.path.name: (e.why, e.bytes) for e in survey(folder, Keep()).collected if e.path.name != TENSORS
        }  # fmt: skip

    always = {
        "k.damaged": ("damaged, set aside", 1000), ".part-x": ("left by a killed writer", 1000),
        "learn-of-1.partial": ("inside a phase that is over", 1000),
    }  # fmt: skip
    assert remains() == {**always, "other.partial": ("inside a phase that is over", 1000)}
    add(folder, 2, {"baseline": 3.0}, status=None)
    assert remains() == always


@pytest.mark.parametrize("seed", range(30))
def test_the_best_and_the_referenced_survive_every_policy(tmp_path: Path, seed: int) -> None:
    """On random sweeps: whatever is asked for, what must stay can still be restored, and records are untouched."""
    chance = random.Random(seed)
    trials = chance.randint(1, 8)
    folder = empty_sweep(tmp_path, trials=trials + chance.randint(0, 1))
    for trial in range(1, trials + 1):
        labels = LABELS[: chance.randint(1, len(LABELS))]
        shared = {}
        if trial > 1 and chance.random() < 0.5:
            owned = [r.phase for r in folder.phases() if r.trial == 1]
            shared = dict.fromkeys(labels[: chance.randint(0, min(len(labels), len(owned)))], 1)
        statuses: list[Status | None] = ["COMPLETE", "COMPLETE", "STOPPED", "DIVERGED", "FAILED", None]
        status = chance.choice(statuses)
        add(folder, trial, {label: chance.uniform(1, 5) for label in labels}, status=status, shared=shared)
    for trial, record in folder.trials().items():
        if chance.random() < 0.2:
            folder.add_export(trial, record.phases[-1], tmp_path / "out")
    store = PhaseStore(folder.store)
    restorable = {record.key for record in folder.phases() if store.missing(record.key) is None}
    before = {
        name: text for name, (_, text) in contents(folder.path).items() if not name.endswith((TENSORS, "manifest.json"))
    }
    keep = Keep(sweep_best=chance.randint(1, 3), trial_best=chance.randint(0, 2), trial_latest=chance.randint(0, 2))

    found = survey(folder, keep)
    collect(found)

    after = {
        name: text for name, (_, text) in contents(folder.path).items() if not name.endswith((TENSORS, "manifest.json"))
    }
    assert after == before
    must = {entry.key for entry in folder.exports()}
    ended = folder.trials()
    complete = sorted((r.objective, t) for t, r in ended.items() if r.status == "COMPLETE")
    must |= {ended[trial].phases[-1] for _, trial in complete[: keep.sweep_best]}
    for trial in folder.proposals():
        own = [record.key for record in folder.phases() if record.trial == trial]
        if trial not in ended or ended[trial].status == "FAILED" or keep.trial_latest:
            must.add(own[-1])
    assert {key for key in must & restorable if store.missing(key) is not None} == set()
    assert all(store.find(record.key) is not None for record in folder.phases())
    assert not any(entry.path.exists() for entry in found.collected)
    assert all(entry.path.exists() for entry in found.kept)
    assert survey(folder, keep) == Survey(kept=found.kept, collected=[]), "once is enough"


# A real sweep.


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> InlineDriver:
    driver = InlineDriver()
    monkeypatch.setattr("raysweep.cluster.driver.run_sweep", driver)
    return driver


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    folder = new_sweep(tmp_path_factory.mktemp("finished"), search_job(trials=3))
    InlineDriver()(folder, folder.job(), Fingerprints(**folder.environment()["fingerprints"]))
    return folder


@pytest.fixture
def results(finished: SweepFolder, tmp_path: Path) -> Path:
    shutil.copytree(finished.path, tmp_path / "s")
    return tmp_path


def of(folder: SweepFolder, trial: int) -> list[PhaseRecord]:
    return [record for record in folder.phases() if record.trial == trial]


def test_a_dry_run_changes_nothing_and_names_what_then_goes(results: Path) -> None:
    before = contents(results)
    planned = api.gc("s", keep=Keep(**NONE_OF_A_TRIAL), dry_run=True, results=results)
    assert contents(results) == before
    assert planned.collected and all(entry.bytes > 100_000 for entry in planned.collected)
    done = api.gc("s", keep=Keep(**NONE_OF_A_TRIAL), results=results)
    assert done == planned and not any(entry.path.exists() for entry in planned.collected)


def test_a_sweep_that_is_run_is_not_collected(results: Path) -> None:
    folder = SweepFolder.open(results, "s")
    lock = folder.lock()
    with pytest.raises(ArchiveError, match="being run"):
        api.gc("s", results=results)
    lock.release()


def test_after_collecting_all_that_can_be_the_sweep_goes_on_as_before(
    results: Path, driver: InlineDriver, finished: SweepFolder, tmp_path: Path
) -> None:
    folder = SweepFolder.open(results, "s")
    shutil.copytree(finished.path, tmp_path / "whole" / "s")
    for place in (tmp_path / "whole", results):
        if place == results:
            api.gc("s", keep=Keep(**NONE_OF_A_TRIAL), results=place)
            shutil.rmtree(folder.store / next(r.key for r in of(folder, 1) if r.phase == "baseline"))
        api.fork("s", 1, after="learn", overrides=["cycle.cycles=2"], results=place)
        api.extend("s", "+1", results=place)
    whole = SweepFolder.open(tmp_path / "whole", "s")
    for trial in (4, 5):
        assert [r.outcome() for r in of(folder, trial)] == [r.outcome() for r in of(whole, trial)]
    assert {trial: record.objective for trial, record in folder.trials().items()} == {
        trial: record.objective for trial, record in whole.trials().items()
    }


def test_the_best_trial_can_be_exported_after_all_else_is_gone(results: Path, tmp_path: Path) -> None:
    folder = SweepFolder.open(results, "s")
    best = min(folder.trials().values(), key=lambda record: record.objective or 0).trial
    other = next(trial for trial in folder.trials() if trial != best)
    api.export("s", other, tmp_path / "other", results=results)
    third = next(trial for trial in folder.trials() if trial not in (best, other))
    api.gc("s", keep=Keep(**NONE_OF_A_TRIAL), results=results)
    for trial in (best, other):
        api.export("s", trial, tmp_path / f"again-{trial}", results=results)
    ours, theirs = (load_model(tmp_path / name).state_dict() for name in ("other", f"again-{other}"))
    assert all(torch.equal(weights, theirs[name]) for name, weights in ours.items())
    told: list[str] = []
    api.export("s", third, tmp_path / "third", results=results, tell=told.append)
    assert len(told) == 1 and f"trial {third}, learn: its checkpoint is lost" in told[0], "its phase is run again"
