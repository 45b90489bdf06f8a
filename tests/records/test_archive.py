"""A sweep's folder survives a kill at any byte, belongs to one driver at a time, and is never overwritten."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from raysweep.errors import ArchiveError, DiskFullError, UsageError
from raysweep.job.jobfile import Job, check_job
from raysweep.job.plan import Fingerprints
from raysweep.job.spec import BudgetSpec
from raysweep.records.folder import SweepFolder
from raysweep.records.lines import LaneGroup
from raysweep.records.plans import plan_of
from raysweep.records.results import check_new_sweep, list_sweeps
from raysweep.records.schema import PhaseRecord, Proposal, Session, TrialRecord

SPACE = {
    "cycle.prune.strategy": {"choice": ["taylor", "entropy"]},
    "cycle.prune.direction": {"choice": ["high"], "when": {"cycle.prune.strategy": "entropy"}},
}


@cache
def a_job() -> Job:
    cycle = {"prune": {"strategy": "taylor", "level": 0.3}}
    search = {"space": SPACE, "trials": 2}
    return check_job({"name": "demo", "model": {"name": "m"}, "cycle": cycle, "search": search}, "job.yaml")


def new_sweep(results: Path, name: str | None = None) -> SweepFolder:
    return SweepFolder.create(results, a_job(), name, {"seed": 1})


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return new_sweep(tmp_path / "results")


def proposal(trial: int, attempt: int = 1, **values: Any) -> Proposal:
    return Proposal(trial=trial, values=values, proposer="tpe", seed=0, attempt=attempt)


def phase(trial: int, key: str, loss: float = 1.0) -> PhaseRecord:
    return PhaseRecord(
        trial=trial, phase="prune", cycle=1, key=key, reused=False, loss=loss, perplexity=2.0, active_heads=1,
        head_map=[[0]], params=1, flops_per_token=1.0, steps=0, tokens=0, seconds=0.1,
    )  # fmt: skip


def ended(trial: int, status: Any = "COMPLETE", attempts: int = 1) -> TrialRecord:
    return TrialRecord(
        trial=trial, status=status, values={}, seed=0, proposer="tpe", objective=1.0, attempts=attempts, phases=["k"],
        seconds=1.0,
    )  # fmt: skip


# A new sweep


def test_sweeps_of_a_job_are_numbered_from_one(tmp_path: Path) -> None:
    results = tmp_path / "deep" / "results"
    assert [new_sweep(results).name for _ in range(3)] == ["demo-1", "demo-2", "demo-3"]


def test_a_number_in_use_is_passed_over_whatever_uses_it(tmp_path: Path) -> None:
    (tmp_path / "demo-1").write_text("a file")
    (tmp_path / "demo-2").mkdir()
    assert new_sweep(tmp_path).name == "demo-3"


def test_sweeps_created_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: new_sweep(tmp_path).name, range(8)))
    assert sorted(names) == [f"demo-{number}" for number in range(1, 9)]


def test_a_sweep_holds_its_job_and_environment(tmp_path: Path) -> None:
    created = SweepFolder.create(tmp_path, a_job(), "mine", {"commit": "é", "cores": 2, "none": None})
    opened = SweepFolder.open(tmp_path, "mine")
    assert opened.name == "mine" and opened.path == created.path == (tmp_path / "mine").resolve()
    assert opened.environment() == {"commit": "é", "cores": 2, "none": None}
    assert opened.job().spec == a_job().spec
    space, expected = opened.job().space, a_job().space
    assert space is not None and expected is not None and space.parameters == expected.parameters
    assert opened.store == opened.path / "checkpoints"


def test_a_new_sweep_has_no_records_yet(sweep: SweepFolder) -> None:
    assert (sweep.proposals(), sweep.phases(), sweep.trials(), sweep.lanes()) == ({}, [], {}, [])


def test_nothing_but_the_two_files_is_left_behind_by_making_a_sweep(sweep: SweepFolder) -> None:
    assert sorted(path.name for path in sweep.path.iterdir()) == ["env.json", "job.yaml"]


def test_a_name_in_use_is_refused_and_points_to_resume(tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path, "mine")
    before = (sweep.path / "job.yaml").read_bytes()
    for refused in (lambda: new_sweep(tmp_path, "mine"), lambda: check_new_sweep(tmp_path, "mine")):
        with pytest.raises(ArchiveError, match="'mine' exists already.*'raysweep resume mine'"):
            refused()
    assert (sweep.path / "job.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".", ".hidden", "", "-x", "a b", "a\nb", "é", "x/"])
def test_a_name_that_is_no_plain_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    results = tmp_path / "results"
    for refused in (lambda: new_sweep(results, name), lambda: check_new_sweep(results, name)):
        with pytest.raises(ArchiveError, match="use letters, digits"):
            refused()
    with pytest.raises(ArchiveError, match="no "):
        SweepFolder.open(results, name)
    assert list(tmp_path.rglob("*")) == []


def test_a_sweep_outside_the_results_is_not_opened(tmp_path: Path) -> None:
    new_sweep(tmp_path / "elsewhere", "mine")
    (tmp_path / "results").mkdir()
    for name in ("../elsewhere/mine", str(tmp_path / "elsewhere" / "mine")):
        with pytest.raises(ArchiveError):
            SweepFolder.open(tmp_path / "results", name)


@pytest.mark.parametrize("name", ["a", "A.b-c_1", "1", "x" * 100])
def test_a_plain_name_may_be_used(tmp_path: Path, name: str) -> None:
    check_new_sweep(tmp_path, name)
    assert new_sweep(tmp_path, name).path == tmp_path.resolve() / name


def assert_cannot_be_written(results: Path) -> None:
    with pytest.raises(ArchiveError) as refused:
        new_sweep(results)
    assert f"results folder '{results}' cannot be written" in str(refused.value)
    assert "Choose another with --results or RAYSWEEP_RESULTS." in str(refused.value)
    assert isinstance(refused.value, UsageError) and refused.value.exit_code == 2


def test_results_that_are_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    assert_cannot_be_written(tmp_path / "results")
    assert_cannot_be_written(tmp_path / "results" / "deeper")


@pytest.mark.skipif(
    os.geteuid() == 0, reason="RUN AS ROOT: permissions bind nobody, so a read-only folder shows nothing"
)
def test_results_that_are_read_only_are_refused(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    results.chmod(0o555)
    try:
        assert_cannot_be_written(results)
    finally:
        results.chmod(0o755)


# An existing sweep


def test_an_unknown_sweep_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no 'demo-1', nor any other sweep"):
        SweepFolder.open(tmp_path, "demo-1")
    new_sweep(tmp_path)
    with pytest.raises(ArchiveError, match=r"no 'dmo-1'. Did you mean 'demo-1'\? Known: demo-1"):
        SweepFolder.open(tmp_path, "dmo-1")


def test_a_folder_without_a_job_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "stray.txt").write_text("")
    assert list_sweeps(tmp_path) == []
    with pytest.raises(ArchiveError):
        SweepFolder.open(tmp_path, "reference")


def test_sweeps_are_listed_oldest_first(tmp_path: Path) -> None:
    for age, name in enumerate(["b", "c", "a"]):
        job = new_sweep(tmp_path, name).path / "job.yaml"
        os.utime(job, ns=(10**18 + age, 10**18 + age))
    assert list_sweeps(tmp_path) == ["b", "c", "a"]
    assert list_sweeps(tmp_path / "none") == []


# Records


def test_records_read_back_as_they_were_added(sweep: SweepFolder) -> None:
    proposals = [proposal(1, level=0.3), proposal(2, tokenizer=None)]
    phases = [phase(1, "k1"), phase(1, "k2"), phase(2, "k1")]
    for proposed in proposals:
        sweep.add_proposal(proposed)
    for record in phases:
        sweep.add_phase(record)
    sweep.add_trial(ended(1))
    sweep.add_lane({"lane": "lane-0", "group": "g", "pids": [1, 2]})
    read = SweepFolder.open(sweep.path.parent, sweep.name)
    assert read.proposals() == {1: proposals[0], 2: proposals[1]} and read.phases() == phases
    assert read.trials() == {1: ended(1)} and read.lanes() == [LaneGroup("lane-0", "g", [1, 2])]


def test_the_latest_attempt_of_a_trial_counts(sweep: SweepFolder) -> None:
    sweep.add_proposal(proposal(1))
    sweep.add_proposal(proposal(2))
    sweep.add_proposal(proposal(1, attempt=2))
    sweep.add_trial(ended(1, "FAILED"))
    sweep.add_trial(ended(1, "COMPLETE", attempts=2))
    assert [entry.attempt for entry in sweep.proposals().values()] == [2, 1]
    assert sweep.trials() == {1: ended(1, "COMPLETE", attempts=2)}
    assert len((sweep.path / "trials.jsonl").read_text().splitlines()) == 2, "nothing is ever taken away"


def test_a_phase_that_a_trial_repeats_is_recorded_once(sweep: SweepFolder) -> None:
    sweep.add_phase(phase(1, "k", loss=1.0))
    sweep.add_phase(phase(1, "k", loss=2.0))
    again = SweepFolder.open(sweep.path.parent, sweep.name)
    again.add_phase(phase(1, "k", loss=3.0))
    again.add_phase(phase(2, "k", loss=1.0))
    again.add_phase(phase(1, "l", loss=1.0))
    assert [(entry.trial, entry.key, entry.loss) for entry in again.phases()] == [(1, "k", 1), (2, "k", 1), (1, "l", 1)]


def test_a_phase_that_could_not_be_written_can_be_added_again(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("raysweep.records.jsonlines._cut_partial_line", full)
        with pytest.raises(OSError, match="disk full"):
            sweep.add_phase(phase(1, "k"))
    (sweep.path / "phases.jsonl").unlink()
    sweep.add_phase(phase(1, "k"))
    assert len(sweep.phases()) == 1


def test_an_ended_trial_and_what_it_rests_on_are_on_the_disk_before_the_call_returns(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[str, int] = {}

    def sync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        assert not (name != "trials.jsonl" and (sweep.path / "trials.jsonl").exists())  # the record comes last
        synced[name] = os.fstat(descriptor).st_size

    monkeypatch.setattr(os, "fsync", sync)
    sweep.add_proposal(proposal(1))
    sweep.add_phase(phase(1, "k"))
    assert synced == {}  # a killed process loses no line; what follows from it is told anew
    sweep.add_trial(ended(1))
    names = ("plans.jsonl", "phases.jsonl", "trials.jsonl")
    assert synced == {name: (sweep.path / name).stat().st_size for name in names}
    synced.clear()
    sweep.reopen(1)
    assert list(synced) == ["trials.jsonl"]


def test_a_kill_at_any_byte_of_a_line_loses_that_line_only(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for trial in (1, 2, 3):
        sweep.add_proposal(proposal(trial, text="é\u2028", level=0.3))
    file = sweep.path / "plans.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = len(lines[0] + lines[1])
    for size in range(kept, len(whole)):
        file.write_bytes(whole[:size])
        assert list(sweep.proposals()) == [1, 2], size
        sweep.add_proposal(proposal(4))
        assert list(sweep.proposals()) == [1, 2, 4], size
        assert file.read_bytes()[:kept] == whole[:kept], size
    assert len(whole) - kept > 80


def test_a_kill_in_the_first_line_leaves_an_empty_record(sweep: SweepFolder) -> None:
    (sweep.path / "plans.jsonl").write_bytes(b'{"trial": 1, "val')
    assert sweep.proposals() == {}
    sweep.add_proposal(proposal(7))
    assert sweep.proposals() == {7: proposal(7)}


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 131_072, 300_000])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_long_partial_line_is_cut_whole(sweep: SweepFolder, length: int, before: int) -> None:
    for trial in range(before):
        sweep.add_proposal(proposal(trial))
    file = sweep.path / "plans.jsonl"
    kept = file.read_bytes() if before else b""
    file.write_bytes(kept + b"x" * length)
    sweep.add_proposal(proposal(9))
    assert list(sweep.proposals()) == [*range(before), 9] and file.read_bytes().startswith(kept)


def test_a_long_whole_line_is_kept(sweep: SweepFolder) -> None:
    sweep.add_proposal(proposal(1, text="x" * 65_600))
    sweep.add_proposal(proposal(2, text="x" * 200_000))
    sweep.add_proposal(proposal(3))
    assert [len(entry.values.get("text", "")) for entry in sweep.proposals().values()] == [65_600, 200_000, 0]


def test_a_record_of_another_schema_is_an_error_that_names_file_and_line(sweep: SweepFolder) -> None:
    """It was written by another raysweep, as were all others: none of them may be passed over."""
    sweep.add_trial(ended(1))
    with open(sweep.path / "trials.jsonl", "ab") as stream:
        stream.write(b'{"schema": 99}\n')
    with pytest.raises(ArchiveError) as refused:
        sweep.trials()
    assert f"{sweep.path / 'trials.jsonl'}, line 2 cannot be read: record of schema 99" in str(refused.value)


def test_lines_are_plain_json_in_the_order_of_events(sweep: SweepFolder) -> None:
    sweep.add_trial(ended(2))
    sweep.add_trial(ended(1))
    lines = (sweep.path / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [2, 1] and all(line == line.strip() for line in lines)


# The lock

HOLDER = """
import sys, time
from pathlib import Path
from raysweep.records.folder import SweepFolder
from raysweep.records.lines import LaneGroup
lock = SweepFolder.open(Path(sys.argv[1]), sys.argv[2]).lock()
print("locked", flush=True)
time.sleep(60)
"""


def test_a_sweep_belongs_to_one_process_until_that_is_killed(sweep: SweepFolder) -> None:
    command = [sys.executable, "-c", HOLDER, str(sweep.path.parent), sweep.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
            with pytest.raises(ArchiveError, match=f"'{sweep.name}' is being run by another process"):
                sweep.lock()
            sweep.add_trial(ended(1))
            assert list(SweepFolder.open(sweep.path.parent, sweep.name).trials()) == [1], "reading needs no lock"
        finally:
            holder.send_signal(signal.SIGKILL)
    assert holder.returncode == -signal.SIGKILL
    sweep.lock().release()


def test_a_released_lock_can_be_taken_again(sweep: SweepFolder) -> None:
    lock = sweep.lock()
    with pytest.raises(ArchiveError, match="another process"):
        SweepFolder.open(sweep.path.parent, sweep.name).lock()
    lock.release()
    sweep.lock().release()


# Sessions, requests and limits of a sweep that has begun


def session(name: str, **seen: Any) -> Session:
    return Session(session=name, host="here", pid=1, started=5.0, **seen)


def test_a_session_is_what_was_last_seen_of_it(sweep: SweepFolder) -> None:
    assert sweep.sessions() == []
    for seen in (session("a"), session("b", seconds=1.0), session("a", seconds=2.0), session("b", ended="done")):
        sweep.add_session(seen)
    assert sweep.sessions() == [session("a", seconds=2.0), session("b", ended="done")]


def test_a_request_to_stop_is_seen_by_whoever_opens_the_sweep(sweep: SweepFolder) -> None:
    other = SweepFolder.open(sweep.path.parent, sweep.name)
    assert not sweep.stop_requested()
    other.request_stop()
    other.request_stop()
    assert sweep.stop_requested()
    sweep.withdraw_stop()
    sweep.withdraw_stop()
    assert not other.stop_requested()


def test_a_replaced_job_is_as_old_as_the_one_before(tmp_path: Path) -> None:
    first, second = new_sweep(tmp_path, "first"), new_sweep(tmp_path, "second")
    changed = a_job().spec.model_copy(update={"budget": BudgetSpec(hours=2)})
    first.replace_job(replace(a_job(), spec=changed))
    assert list_sweeps(tmp_path) == ["first", "second"]
    assert first.job().spec == changed and second.job().spec == a_job().spec
    assert sorted(path.name for path in first.path.iterdir()) == ["env.json", "job.yaml"]


def test_phases_are_read_on_from_where_one_was(sweep: SweepFolder) -> None:
    assert sweep.phases_since(0) == ([], 0)
    sweep.add_phase(phase(1, "a"))
    found, byte = sweep.phases_since(0, stop="curve")
    assert [record.key for record in found] == ["a"]
    with (sweep.path / "phases.jsonl").open("ab") as stream:
        stream.write(b'{"trial": 1, "pha')
    assert sweep.phases_since(byte) == ([], byte)
    sweep.add_phase(phase(1, "b"))
    sweep.add_phase(phase(1, "c"))
    found, byte = sweep.phases_since(byte)
    assert [record.key for record in found] == ["b", "c"]
    assert sweep.phases_since(byte) == ([], byte)


def test_a_reopened_trial_has_not_ended(sweep: SweepFolder) -> None:
    sweep.add_trial(ended(1, "FAILED"))
    sweep.add_trial(ended(2))
    sweep.reopen(1)
    assert list(sweep.trials()) == [2]
    sweep.add_trial(ended(1, attempts=2))
    assert list(sweep.trials()) == [2, 1] and sweep.trials()[1].attempts == 2


def test_a_full_disk_is_named_and_loses_the_line_only(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sweep.add_trial(ended(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="no space is left for .*trials.jsonl.*resume the sweep"):
            sweep.add_trial(ended(2))
    with (sweep.path / "trials.jsonl").open("r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        stream.truncate()  # what was written of it
    assert list(sweep.trials()) == [1]
    sweep.add_trial(ended(2))
    assert list(sweep.trials()) == [1, 2]


def test_a_sweep_knows_whether_it_runs(sweep: SweepFolder) -> None:
    assert not sweep.running()
    lock = sweep.lock()
    assert SweepFolder.open(sweep.path.parent, sweep.name).running()
    lock.release()
    assert not sweep.running()


@pytest.mark.parametrize(
    ("proposer", "judged"),
    [("tpe", True), ("job", True), ("replicate", False), ("confirmation", False), ("fork", False)],
)
def test_a_proposal_is_planned_on_its_own_seed_and_only_the_searchs_trials_are_judged(
    proposer: str, judged: bool
) -> None:
    marks = Fingerprints(model="m", data="d")
    made = replace(proposal(3), proposer=proposer, seed=11)
    plan = plan_of(a_job(), made, marks)
    assert (plan.trial, plan.seed, plan.judged) == (3, 11, judged)
    other = plan_of(a_job(), replace(made, seed=12), marks)
    assert plan.phases[0].key != other.phases[0].key


def test_that_a_sampler_has_nothing_left_stays_known(sweep: SweepFolder) -> None:
    assert not sweep.exhausted()
    sweep.exhaust()
    assert sweep.exhausted() and SweepFolder(sweep.path).exhausted()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", [None, "mine"])
def test_records_follow_the_umask_and_a_private_sweep_is_its_owner_s(
    tmp_path: Path, umask: int, private: bool, name: str | None
) -> None:
    before = os.umask(umask)
    try:
        folder = SweepFolder.create(tmp_path, a_job(), name, {"sharing": True}, private=private)
    finally:
        os.umask(before)
    assert folder.path.stat().st_mode & 0o777 == (0o700 if private else 0o777) & ~umask
    for path in folder.path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path
