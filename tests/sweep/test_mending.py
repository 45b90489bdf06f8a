"""A phase that is in the store and whose record was lost gets its record back; nothing else is changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweeps import TAYLOR, make_sweep, phase_record, trial_record

from raysweep.job.plan import Fingerprints, TrialPlan
from raysweep.records import atomic_folders as entries
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.records.schema import PhaseRecord, Proposal
from raysweep.sweep.invariants import check
from raysweep.sweep.mending import mend

FINGERPRINTS = Fingerprints(model="m", data="d")


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A sweep of two trials that share all phases, the first of which ran them; nothing is recorded."""
    folder = make_sweep(tmp_path)
    for trial in (1, 2):
        folder.add_proposal(Proposal(trial=trial, values=dict(TAYLOR), proposer="tpe", attempt=1, seed=0))
    records = records_of(folder, 1)
    folder.store.mkdir()
    for number, record in enumerate(records):
        history = [earlier.key for earlier in records[: number + 1]]
        outcome = {"trial": 1, "record": record.to_dict(), "reference_entropy": None, "history": history}
        with entries.appearing(folder.store / record.key, folder.store) as entry:
            (entry / "outcome.json").write_text(json.dumps(outcome))
    return folder


def plan(folder: SweepFolder, trial: int) -> TrialPlan:
    return plan_of(folder.job(), folder.proposals()[trial], FINGERPRINTS)


def records_of(folder: SweepFolder, trial: int) -> list[PhaseRecord]:
    phases = plan(folder, trial).phases
    return [replace(phase_record(trial, phase.label, 40.0), key=phase.key, reused=trial != 1) for phase in phases]


def end(folder: SweepFolder, trial: int) -> None:
    folder.add_trial(trial_record(trial, "COMPLETE", records_of(folder, trial)))


def mended(folder: SweepFolder) -> list[tuple[int, str, bool]]:
    found = mend(folder, folder.job(), FINGERPRINTS)
    assert mend(folder, folder.job(), FINGERPRINTS) == []
    return [(record.trial, record.phase, record.reused) for record in found]


def test_a_sweep_that_lacks_nothing_stays_as_it_is(folder: SweepFolder) -> None:
    for trial in (1, 2):
        for record in records_of(folder, trial):
            folder.add_phase(record)
        end(folder, trial)
    before = (folder.path / "phases.jsonl").read_bytes()
    assert mended(folder) == []
    assert (folder.path / "phases.jsonl").read_bytes() == before


@pytest.mark.parametrize("lost", ["baseline", "prune", "learn"])
def test_a_trial_that_has_ended_gets_back_whatever_record_was_lost(folder: SweepFolder, lost: str) -> None:
    for trial in (1, 2):
        for record in records_of(folder, trial):
            if record.phase != lost:
                folder.add_phase(record)
        end(folder, trial)
    assert any("phases are missing" in fault for fault in check(folder))
    assert mended(folder) == [(1, lost, False), (2, lost, True)]
    faults: list[Any] = [fault for fault in check(folder) if "missing" in fault or "heads" in fault]
    assert faults == []
    assert {(r.trial, r.phase): r.loss for r in folder.phases()}[2, lost] == records_of(folder, 1)[0].loss


def test_an_open_trial_gets_back_what_it_ran_and_announces_the_rest_itself(folder: SweepFolder) -> None:
    for record in records_of(folder, 1)[:2]:
        folder.add_phase(record)
    left = [record.phase for record in records_of(folder, 1)[2:]]
    assert mended(folder) == [(1, phase, False) for phase in left]


def test_a_damaged_entry_mends_nothing(folder: SweepFolder) -> None:
    last = records_of(folder, 1)[-1].key
    (folder.store / last / "outcome.json").write_text("{}")
    assert len(mended(folder)) == len(records_of(folder, 1)) - 1
