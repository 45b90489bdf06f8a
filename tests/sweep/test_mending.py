"""What damaged lines of records held is brought back from checkpoints or other records, or is run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.sound import damage, phase, propose, rewrite, sound, store
from support.sweeps import ENTROPY, TAYLOR, contents, make_sweep, trial_record

from raysweep.job.plan import Fingerprints
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.records.schema import PhaseRecord
from raysweep.sweep import mending
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.invariants import check


def mend(folder: SweepFolder) -> list[str]:
    return mending.mend(folder, folder.job(), Fingerprints(model="m", data="d"))


def nulled(folder: SweepFolder, file: str, number: int) -> None:
    damage(folder, file, number, lambda line: b"\0" * len(line))


def line_of(folder: SweepFolder, trial: int, label: str) -> int:
    """Return the line of a phase record, from 1."""
    lines = map(json.loads, (folder.path / "phases.jsonl").read_text().splitlines())
    return next(n for n, line in enumerate(lines, 1) if (line["trial"], line["phase"]) == (trial, label))


def agenda(folder: SweepFolder) -> Agenda:
    return Agenda(folder, folder.job(), None)


def test_a_sound_sweep_is_left_as_it_is(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    before = contents(folder.path)
    assert mend(folder) == [] and contents(folder.path) == before


@pytest.mark.parametrize("label", ["baseline", "prune", "measure", "grow", "learn"])
def test_a_phase_record_is_brought_back_to_its_place(tmp_path: Path, label: str) -> None:
    folder = sound(tmp_path)
    before = folder.phases()
    nulled(folder, "phases.jsonl", line_of(folder, 1, label))
    aside, back = mend(folder)
    assert "phases.jsonl: line" in aside and aside.endswith("is damaged and set aside in phases.jsonl.damaged")
    assert back == "1 phase records were brought back from the checkpoints"
    assert folder.phases() == before and check(folder) == []


def test_a_record_that_never_came_is_brought_back_too(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    before = folder.phases()
    rewrite(folder, "phases.jsonl", lambda lines: lines.pop(1))
    assert mend(folder) == ["1 phase records were brought back from the checkpoints"]
    assert folder.phases() == before


def test_all_records_of_phases_can_be_lost(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    before = [record for record in folder.phases() if record.trial == 1]
    (folder.path / "phases.jsonl").unlink()
    _, again = mend(folder)
    assert [record for record in folder.phases() if record.trial == 1] == before
    assert again == "trials 2 are run again: records of their phases are lost"
    assert sorted(folder.trials()) == [1, 3, 4]


def test_a_reused_phase_is_brought_back_as_reused(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    nulled(folder, "phases.jsonl", line_of(folder, 2, "baseline"))
    mend(folder)
    (found,) = [record for record in folder.phases() if (record.trial, record.phase) == (2, "baseline")]
    assert found == phase(2, "baseline", reused=True, seconds=0.0)


def test_a_trial_whose_phase_is_stored_nowhere_runs_again(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    nulled(folder, "phases.jsonl", line_of(folder, 2, "grow"))
    assert mend(folder)[1:] == ["trials 2 are run again: records of their phases are lost"]
    assert 2 not in folder.trials()
    following = agenda(folder).next()
    assert following is not None and (following.trial, following.attempt) == (2, 2)


@pytest.mark.parametrize(("label", "restored"), [("baseline", True), ("prune", False)])
def test_a_stopped_trial_gets_back_what_it_must_have_run(tmp_path: Path, label: str, restored: bool) -> None:
    """Its record names all phases of its plan, and the store holds outcomes of other trials."""
    folder = sound(tmp_path)
    rewrite(folder, "trials.jsonl", lambda lines: lines[3].update(phases=["baseline", "prune-of-1"]))
    number = line_of(folder, 4, label)
    nulled(folder, "phases.jsonl", number)
    if label == "baseline":
        rewrite_key = replace(phase(4, "prune"), key="prune-of-1")
        lines = (folder.path / "phases.jsonl").read_bytes().splitlines(keepends=True)
        lines[number] = json.dumps(vars(rewrite_key)).encode() + b"\n"
        (folder.path / "phases.jsonl").write_bytes(b"".join(lines))
    mend(folder)
    assert [record.phase for record in folder.phases() if record.trial == 4] == (
        ["baseline", "prune"] if restored else ["baseline"]
    )
    assert 4 in folder.trials()


def test_a_trial_whose_end_is_lost_runs_again(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    nulled(folder, "trials.jsonl", 2)
    mend(folder)
    following = agenda(folder).next()
    assert following is not None and (following.trial, following.values, following.attempt) == (2, ENTROPY, 2)


def test_a_plan_is_taken_from_how_its_trial_ended(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    before = folder.proposals()
    nulled(folder, "plans.jsonl", 2)
    assert mend(folder)[1] == "the plans of trials 2 were taken from how they ended"
    assert folder.proposals()[2] == replace(before[2], attempt=2) and check(folder) == []


def test_a_trial_of_which_nothing_tells_is_proposed_anew_under_its_number(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    nulled(folder, "plans.jsonl", 2)
    nulled(folder, "trials.jsonl", 2)
    folder.exhaust()
    done = mend(folder)
    assert "trials 2 are proposed again: their plans are lost" in done
    assert {record.trial for record in folder.phases()} == {1, 3, 4}, "they may be those of another point"
    following = agenda(folder).next()
    assert following is not None and (following.trial, following.attempt) == (2, 1)
    propose(folder, 2, TAYLOR)
    assert agenda(folder).next() is not None


def test_a_journal_that_lost_a_line_gets_it_back_or_is_written_anew(tmp_path: Path) -> None:
    """The study appends every trial that the journal lacks."""
    folder = sound(tmp_path)
    nulled(folder, "study.journal", 3)
    mend(folder)
    assert [entry.trial for entry in folder.journal()] == [None, 1, 3, 4]
    nulled(folder, "study.journal", 1)
    mend(folder)
    assert not (folder.path / "study.journal").exists() and folder.journal() == []


def test_mending_twice_is_mending_once(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    for file, number in (("plans.jsonl", 1), ("phases.jsonl", 1), ("trials.jsonl", 2), ("retries.jsonl", 1)):
        nulled(folder, file, number)
    assert mend(folder) and mend(folder) == []


# Records that were lost on their way, not damaged.


@pytest.fixture
def shared(tmp_path: Path) -> SweepFolder:
    """A sweep of two trials that share all phases, the first of which ran them; nothing is recorded."""
    folder = make_sweep(tmp_path)
    for trial in (1, 2):
        propose(folder, trial)
    store(folder, records_of(folder, 1))
    return folder


def records_of(folder: SweepFolder, trial: int) -> list[PhaseRecord]:
    phases = plan_of(folder.job(), folder.proposals()[trial], Fingerprints(model="m", data="d")).phases
    return [replace(phase(trial, each.label, key=each.key), reused=trial != 1) for each in phases]


def told(folder: SweepFolder) -> list[tuple[int, str, bool]]:
    return [(record.trial, record.phase, record.reused) for record in folder.phases()]


@pytest.mark.parametrize("lost", ["baseline", "prune", "learn"])
def test_a_trial_that_has_ended_gets_back_whatever_record_was_lost(shared: SweepFolder, lost: str) -> None:
    whole = [record for trial in (1, 2) for record in records_of(shared, trial)]
    for record in whole:
        if record.phase != lost:
            shared.add_phase(record)
    for trial in (1, 2):
        shared.add_trial(trial_record(trial, "COMPLETE", records_of(shared, trial)))
    assert any("phases are missing" in fault for fault in check(shared))
    assert mend(shared) == ["2 phase records were brought back from the checkpoints"] and mend(shared) == []
    assert told(shared) == [(record.trial, record.phase, record.reused) for record in whole]
    assert not [fault for fault in check(shared) if "missing" in fault or "heads" in fault]


def test_an_open_trial_gets_back_what_it_ran_and_announces_the_rest_itself(shared: SweepFolder) -> None:
    for record in records_of(shared, 1)[:2]:
        shared.add_phase(record)
    assert mend(shared) == ["3 phase records were brought back from the checkpoints"]
    assert told(shared) == [(1, record.phase, False) for record in records_of(shared, 1)]


def test_a_damaged_checkpoint_brings_nothing_back(shared: SweepFolder) -> None:
    (shared.store / records_of(shared, 1)[-1].key / "outcome.json").write_text("{}")
    assert mend(shared) == ["4 phase records were brought back from the checkpoints"]
