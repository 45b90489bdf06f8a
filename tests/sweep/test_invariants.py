"""Each invariant holds of a sound sweep, and breaking it is found: that one, and no other."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sound import end, phase, propose, rewrite, sound, store, tell, whole
from support.sweeps import DECISIONS, TAYLOR, make_sweep, trial_record

from raysweep.job.identity import job_hash
from raysweep.job.yamlfile import dump_mapping, load_mapping
from raysweep.records import atomic_folders as entries
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Session, TrialRecord
from raysweep.sweep.deep import DEEP
from raysweep.sweep.invariants import INVARIANTS, check, examine


def broken(folder: SweepFolder) -> dict[str, list[str]]:
    return {name: faults for name, faults in examine(folder)["invariants"].items() if faults}


def only(folder: SweepFolder, invariant: str) -> str:
    """Return the one fault found, which is of the invariant."""
    found = broken(folder)
    assert list(found) == [invariant]
    assert check(folder) == found[invariant]
    [fault] = found[invariant]
    return fault


def test_a_sound_sweep_breaks_nothing(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    assert check(folder) == []
    found = examine(folder)
    assert (found["planned"], found["ended"], found["open"], found["running"]) == (4, 4, [], False)
    assert list(found["invariants"]) == list(INVARIANTS)


def test_what_is_open_breaks_nothing(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    assert check(folder) == []
    propose(folder, 1)
    for record in whole(1)[:3]:
        folder.add_phase(record)
    assert check(folder) == []
    assert examine(folder)["open"] == [1]


COUNTED = "planned = finished + stopped + diverged + failed"


def test_more_trials_than_planned(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    propose(folder, 5)
    assert only(folder, COUNTED) == "the search proposed 5 trials, but 4 were planned"


def test_forks_are_planned_by_being_made(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    propose(folder, 5, proposer="fork")
    assert check(folder) == []
    assert examine(folder)["planned"] == 5


def test_a_trial_that_was_passed_over(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    for file in ("plans.jsonl", "phases.jsonl", "trials.jsonl"):
        rewrite(folder, file, lambda lines: lines.__setitem__(slice(None), [x for x in lines if x["trial"] != 3]))
    rewrite(folder, "study.journal", lambda lines: lines.pop(3))
    assert only(folder, COUNTED) == "trials 3 were passed over"


def test_a_cancelled_trial_is_no_end_of_a_sweep(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "trials.jsonl", lambda lines: lines[2].update(status="CANCELLED"))
    assert only(folder, COUNTED) == "trials 3 were cancelled, and the sweep ended without them"


def test_a_trial_counted_twice(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "trials.jsonl", lambda lines: lines.append(lines[0]))
    assert only(folder, "no trial is counted twice") == "trial 1 was counted again, as COMPLETE, after it had ended"


def test_a_trial_that_was_opened_again_may_end_again(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    folder.reopen(3)
    assert check(folder) == []
    assert examine(folder)["open"] == [3]
    propose(folder, 3, attempt=2)
    end(folder, 3, whole(3), attempts=2)
    assert check(folder) == []


def test_records_of_a_trial_that_nobody_proposed(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    folder.add_phase(phase(9, "baseline"))
    assert only(folder, "every record belongs to a proposed trial") == "trials 9 have phases, but were never proposed"


def test_a_trial_that_ended_with_other_values(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "plans.jsonl", lambda lines: lines[1].update(values=TAYLOR))
    assert "trial 2 ended with other values" in only(folder, "every record belongs to a proposed trial")


def test_a_complete_trial_that_lacks_a_phase(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "phases.jsonl", lambda lines: lines.pop(7))
    assert phases_of(folder, 2) == ["baseline", "prune", "grow", "learn"]
    found = only(folder, "a completed trial has all its phases")
    assert found == "trial 2 is complete, but 1 of its 5 phases are missing"


def phases_of(folder: SweepFolder, trial: int) -> list[str]:
    return [record.phase for record in folder.phases() if record.trial == trial]


OBJECTIVES = "objectives are those of the phase records"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objectives": {"loss": 0.5}}, "objectives {'loss': 0.5}"),
        ({"objective": 0.5}, "objective 0.5"),
        ({"objectives": {}}, "objectives {}"),
        ({"violations": {"perplexity <= 30": -1.0}}, "violations {'perplexity <= 30': -1.0}"),
    ],
)
def test_a_result_that_was_changed(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "trials.jsonl", lambda lines: lines[1].update(change))
    (fault,) = broken(folder)[OBJECTIVES]
    assert fault.startswith(f"trial 2: {said} is recorded, but its phases measured ")


def test_a_result_that_is_no_number_is_still_the_same(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "phases.jsonl", lambda lines: lines[9].update(loss=math.nan))
    rewrite(folder, "trials.jsonl", lambda lines: lines[1].update(objectives={"loss": math.nan}, objective=math.nan))
    assert check(folder) == []


def test_the_result_of_a_halted_trial_is_that_of_the_phase_it_kept(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    kept = {"rule": "regression", "cycle": 1, "kept": "baseline", "reason": "worse"}
    rewrite(folder, "trials.jsonl", lambda lines: lines[1].update(halted=kept))
    assert "its phases measured 3.688" in broken(folder)[OBJECTIVES][1]


def test_a_job_that_was_edited(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    mark = job_hash(folder.job().spec)
    rewrite(folder, "plans.jsonl", lambda lines: [line.update(job=mark) for line in lines])
    assert check(folder) == []
    job = load_mapping(folder.path / "job.yaml")
    job["budget"] = {"hours": 3.0}
    (folder.path / "job.yaml").write_text(dump_mapping(job))
    assert check(folder) == [], "a limit may change"
    job["cycle"]["learn"]["lr"] = 0.5
    (folder.path / "job.yaml").write_text(dump_mapping(job))
    said = "job.yaml is not the job that trials 1, 2, 3, 4 were planned by: it was edited"
    assert said in only(folder, "every trial was planned by the job")


# All checkpoints.

WRITTEN, STORED = DEEP


def deep(folder: SweepFolder) -> dict[str, list[str]]:
    return {name: faults for name, faults in examine(folder, deep=True)["invariants"].items() if faults}


@pytest.fixture
def stored(tmp_path: Path) -> SweepFolder:
    """The sound sweep with all its checkpoints."""
    folder = sound(tmp_path)
    for trial in (2, 3, 4):
        store(folder, [record for record in folder.phases() if record.trial == trial])
    assert deep(folder) == {}
    return folder


@pytest.mark.parametrize(
    ("entry", "file"),
    [("learn-of-2", "tensors.safetensors"), ("grow-of-2", "slices.safetensors"), ("measure-of-2", "outcome.json")],
)
def test_a_damaged_file_of_any_trial(stored: SweepFolder, entry: str, file: str) -> None:
    path = stored.store / entry / file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert check(stored) == [], "only the best trial's are read without being asked"
    ((name, (fault,)),) = deep(stored).items()
    assert name == WRITTEN and f"{entry}/{file}; 'raysweep repair'" in fault


def test_an_entry_that_is_gone_or_lost_its_manifest(stored: SweepFolder) -> None:
    (stored.store / "learn-of-2" / "manifest.json").write_text("{}")
    shutil.rmtree(stored.store / "grow-of-2")
    damaged, gone = deep(stored)[WRITTEN]
    assert "learn-of-2/manifest.json" in damaged and gone.startswith("trial 2 has no checkpoints of grow; ")


def test_a_checkpoint_inside_a_phase_is_looked_at_too(stored: SweepFolder) -> None:
    (stored.store / "late.partial").mkdir()
    with entries.appearing(stored.store / "late.partial" / "step-000000005", stored.store) as part:
        (part / "progress.json").write_text("{}")
        (part / "tensors.safetensors").write_text("x")
    assert deep(stored) == {}
    (stored.store / "late.partial" / "step-000000005" / "tensors.safetensors").write_text("y")
    assert "late.partial/step-000000005/tensors.safetensors" in deep(stored)[WRITTEN][0]


def test_what_was_collected_or_set_aside_is_no_damage(stored: SweepFolder) -> None:
    entries.collect(stored.store / "learn-of-2", "tensors.safetensors")
    (stored.store / "old.damaged").mkdir()
    (stored.store / ".part-left").mkdir()
    assert deep(stored) == {}


def test_a_phase_record_that_was_changed(stored: SweepFolder) -> None:
    rewrite(stored, "phases.jsonl", lambda lines: lines[6].update(loss=1.0, perplexity=2.0))
    assert deep(stored) == {STORED: ["trial 2, prune: loss, perplexity is not what its checkpoint says"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda points: points.pop(1), "point 2 of its curve is step 30, not step 20"),
        (lambda points: points.insert(1, points[0]), "point 2 of its curve is step 10, not step 20"),
        (lambda points: points.pop(), "point 4 of its curve is nothing, not step 40"),
        (lambda points: points.append({"step": 50.0}), "point 5 of its curve is step 50, not nothing"),
        (lambda points: points.reverse(), "point 1 of its curve is step 40, not step 10"),
    ],
)
def test_steps_that_were_lost_or_repeated(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "phases.jsonl", lambda lines: change(lines[9]["curve"]))
    found = only(folder, "the steps of every training phase run from 1 to its last")
    assert found == f"trial 2, learn: {said}"


def test_evaluations_that_do_not_ascend(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    points = [{"step": step, "loss": 3.0, "training_flops": 1.0} for step in (10, 20, 20)]
    rewrite(folder, "phases.jsonl", lambda lines: lines[9].update(evaluations=points))
    found = only(folder, "the steps of every training phase run from 1 to its last")
    assert found.endswith("its held-out evaluations at steps 10, 20, 20 do not ascend")


def test_more_attempts_than_allowed_in_a_session(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "trials.jsonl", lambda lines: lines[1].update(attempts=40))
    rewrite(folder, "retries.jsonl", lambda lines: lines[0].update(attempt=40, fruitless=2))
    assert check(folder) == []  # those that got on do not count
    rewrite(folder, "retries.jsonl", lambda lines: lines[0].update(fruitless=3))
    assert only(folder, "no trial took more attempts than allowed") == (
        "trial 2 was tried again after 3 attempts in a row that got no further, but scale.max_attempts is 3"
    )


TOLD = "the sampler was told each result once"


def test_a_result_told_twice(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    tell(folder, 2, 1)
    assert only(folder, TOLD) == "the sampler was told 2 times of trial 2"


def test_a_result_told_as_another(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "study.journal", lambda lines: lines[4].update(state=1))
    assert only(folder, TOLD) == "the sampler was told COMPLETE of trial 4, which is STOPPED"


def test_a_trial_left_running_in_the_study(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    tell(folder, None, 0)
    assert only(folder, TOLD) == "the sampler knows a trial as RUNNING that is no result of its search: None"


def test_a_result_never_told(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "study.journal", lambda lines: lines.pop())
    assert only(folder, TOLD) == "the sampler was never told of trials 4"


def test_only_the_last_results_of_a_sweep_under_way_may_still_be_told(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "study.journal", lambda lines: lines.pop())
    with folder.lock():
        assert check(folder) == []
        assert examine(folder)["running"]
        rewrite(folder, "study.journal", lambda lines: lines.pop(1))
        assert only(folder, TOLD) == "the sampler was never told of trials 1"


def test_replicates_are_no_results_of_the_search(tmp_path: Path) -> None:
    folder = sound(tmp_path, seeds=2, top=1)
    assert examine(folder)["planned"] == 4 + 1 + 2
    propose(folder, 5, proposer="replicate")
    for record in whole(5):
        folder.add_phase(record)
    folder.add_trial(replace(trial_record(5, phases=whole(5)), proposer="replicate"))
    assert check(folder) == []
    tell(folder, 5, 1)
    assert only(folder, TOLD) == "the sampler knows a trial as COMPLETE that is no result of its search: 5"


HEADS = "heads come and go by decisions alone"


def change_phase(folder: SweepFolder, number: int, **fields: Any) -> None:
    rewrite(folder, "phases.jsonl", lambda lines: lines[number].update(fields))


def test_a_head_that_goes_without_a_decision(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    change_phase(folder, 9, head_map=[[0, -1, 1, 0], [-1, 0, 0, -1]])
    assert only(folder, HEADS) == "trial 2, learn: heads 0.1 are not what its decisions made them"


def test_a_head_that_comes_with_the_wrong_history(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    for number in (8, 9):
        change_phase(folder, number, head_map=[[0, 0, 2, 0], [-1, 0, 0, -1]])
    assert only(folder, HEADS) == "trial 2, grow: heads 0.2 are not what its decisions made them"


def test_a_removed_head_that_stays(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    for number in (6, 7):
        change_phase(folder, number, head_map=[[0, 0, -1, 0], [0, 0, 0, -1]])
    change_phase(folder, 8, head_map=[[0, 0, 1, 0], [0, 0, 0, -1]])
    change_phase(folder, 9, head_map=[[0, 0, 1, 0], [0, 0, 0, -1]])
    assert only(folder, HEADS) == "trial 2, prune: heads 1.0 are not what its decisions made them"


def test_a_head_that_is_removed_twice(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    change_phase(folder, 7, decision={**DECISIONS["prune"], "heads": [[0, 2]]})
    rewrite(folder, "phases.jsonl", lambda lines: lines[7].update(phase="prune", cycle=1))
    assert only(folder, HEADS) == "trial 2, prune: removed head 0.2, which was absent"


def test_events_inside_a_phase_change_heads_too(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    events = [
        {"step": 0, "phase": "prune", "cycle": 2, "decision": {"heads": [[0, 0], [0, 1]]}},
        {"step": 0, "phase": "measure", "cycle": 2, "loss": 1.0},
        {"step": 0, "phase": "grow", "cycle": 2, "decision": {"heads": [[0, 1], [1, 3]]}},
    ]
    change_phase(folder, 9, events=events, head_map=[[-1, 2, 1, 0], [-1, 0, 0, 2]])
    assert check(folder) == []
    change_phase(folder, 9, events=events[:2])
    assert "heads 0.1, 1.3 are not" in only(folder, HEADS)


def test_control_arms_are_followed_from_what_they_share(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    full = [[0, 0, 0, 0], [0, 0, 0, 0]]
    dense = replace(phase(1, "learn", key="dense-learn", arm="dense"), head_map=full)
    regrown = phase(1, "prune@2", key="other-prune", arm="random_random", decision=DECISIONS["prune"])
    for record in (dense, regrown):
        folder.add_phase(record)
    arms = {"dense": ["baseline", "dense-learn"], "random_random": ["baseline", "other-prune"]}
    rewrite(folder, "trials.jsonl", lambda lines: lines[0].update(controls=arms))
    assert check(folder) == []
    rewrite(folder, "phases.jsonl", lambda lines: lines[-2].update(head_map=[[0, 0, 0, 0], [0, 0, 0, -1]]))
    assert only(folder, HEADS) == "trial 1, dense: learn: heads 1.3 are not what its decisions made them"


def test_equal_keys_with_other_outcomes(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    change_phase(folder, 5, loss=2.0)
    found = only(folder, "equal phases have equal outcomes")
    assert found == "baseline of trials 1 and 2 has one key, but two outcomes"


def test_equal_keys_with_other_curves(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "phases.jsonl", lambda lines: lines[5]["curve"][3].update(loss=9.0))
    assert "two outcomes" in only(folder, "equal phases have equal outcomes")


BEST = "the best trial's checkpoint is on disk"


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("learn-of-1/tensors.safetensors", "learn-of-1/tensors.safetensors"),
        ("learn-of-1/outcome.json", "learn-of-1/outcome.json"),
        ("prune-of-1/slices.safetensors", "prune-of-1/slices.safetensors"),
        ("measure-of-1/outcome.json", "measure-of-1/outcome.json"),
        ("grow-of-1/manifest.json", "grow-of-1"),
    ],
)
def test_a_best_trial_that_cannot_be_restored(tmp_path: Path, gone: str, said: str) -> None:
    folder = sound(tmp_path)
    (folder.store / gone).unlink()
    assert only(folder, BEST) == f"of the best trial, 1, the store lacks {said}"


def test_a_checkpoint_that_was_cut_short(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    tensors = folder.store / "learn-of-1" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert "learn-of-1/tensors.safetensors" in only(folder, BEST)


def test_a_checkpoint_that_was_collected(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    entries.collect(folder.store / "baseline", "tensors.safetensors")
    assert check(folder) == []  # the best trial's own come later
    entries.collect(folder.store / "learn-of-1", "tensors.safetensors")
    assert "learn-of-1/tensors.safetensors" in only(folder, BEST)


def test_older_tensors_than_the_last_may_go(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    (folder.store / "baseline" / "tensors.safetensors").unlink()
    assert check(folder) == []


def test_a_halted_trial_is_restored_from_the_phase_it_went_back_to(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    halted = {"rule": "regression", "cycle": 1, "kept": "baseline", "reason": "worse"}
    rewrite(folder, "trials.jsonl", lambda lines: lines[0].update(halted=halted))
    (folder.store / "learn-of-1" / "tensors.safetensors").unlink()
    assert check(folder) == []
    (folder.store / "baseline" / "tensors.safetensors").unlink()
    assert "baseline/tensors.safetensors" in only(folder, BEST)


def test_a_trial_that_misses_a_constraint_is_not_the_best(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "trials.jsonl", lambda lines: lines[0].update(violations={"perplexity <= 30": 0.5}))
    (fault,) = broken(folder)[BEST]
    assert "of the best trial, 2, the store lacks learn-of-2" in fault


def test_more_steps_wasted_than_between_two_checkpoints(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    rewrite(folder, "retries.jsonl", lambda lines: lines[0].update(resumed_at=0))
    found = only(folder, "a lost worker costs at most a checkpoint interval")
    assert found == (
        "trial 2 lost its workers in learn at step 30 and went on from step 0: "
        "30 steps were wasted, with a checkpoint every 20"
    )


@contextmanager
def process_called(title: str) -> Iterator[int]:
    code = "import sys; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [title, "-c", code], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.communicate()


LEFT_OVER = "no process is left over"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look in")
def test_a_worker_that_outlives_its_sweep(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    with process_called("ray::Worker.work") as pid:
        folder.add_lane({"lane": "lane-0", "group": "g", "pids": [2**22 + 1, pid]})
        assert only(folder, LEFT_OVER) == f"nobody runs the sweep, but its workers are alive: processes {pid}"
        with folder.lock():
            assert check(folder) == []
        for host in ("another-machine", socket.gethostname()):
            folder.add_session(Session(session=host, host=host, pid=1, started=0.0))
            assert bool(check(folder)) == (host == socket.gethostname())  # there, the numbers name other processes
        lanes = folder.path / "lanes.jsonl"
        earlier = lanes.stat().st_mtime - 60
        os.utime(lanes, (earlier, earlier))
        assert check(folder) == []  # it began after the last group was started: only the number is the same
    assert check(folder) == []


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    assert not (folder.path / ".lock").exists()
    check(folder)
    assert not (folder.path / ".lock").exists()


def test_records_read_back_as_what_they_are(tmp_path: Path) -> None:
    folder = sound(tmp_path)
    assert all(isinstance(record, TrialRecord) for record in folder.trials().values())
    assert [retry.resumed_at for retry in folder.retries()] == [20]
