"""A budget counts all sessions, killed ones too; a request to stop is heard; each tells why the sweep ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.jobs import checked_job
from support.sweeps import job_mapping, make_sweep, phase_record

from raysweep.job.jobfile import Job
from raysweep.records import disk
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Session
from raysweep.sweep.limits import ASKED, BEAT_S, WALK_S, Limits, last_end, more_of


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return make_sweep(tmp_path / "results")


def job_with(**budget: Any) -> Job:
    return checked_job({**job_mapping(), "budget": budget}, "heads.yaml")


def session(folder: SweepFolder, name: str, hours: float) -> None:
    folder.add_session(Session(session=name, host="there", pid=1, started=0.0, seconds=hours * 3600))


def test_without_a_budget_nothing_is_reached(folder: SweepFolder, clock: Clock) -> None:
    with Limits(folder, job_with(), clock) as limits:
        clock.now += 1e9
        assert limits.reached() is None
    (seen,) = folder.sessions()
    assert seen.ended == "done" and seen.limit is None and last_end(folder) is None


def test_hours_count_over_all_sessions(folder: SweepFolder, clock: Clock) -> None:
    session(folder, "a", 1.5)
    session(folder, "b", 0.25)
    with Limits(folder, job_with(hours=2), clock) as limits:
        clock.now += 0.25 * 3600 - 1
        assert limits.reached() is None
        clock.now += 1
        assert limits.reached() == "budget.hours = 2 is used up: 2 h over all its sessions"
        assert limits.reached() is not None, "it stays reached"
    end = last_end(folder)
    assert end is not None and end.limit == "budget.hours" and end.seconds == 900
    with Limits(folder, job_with(hours=2), clock) as limits:
        assert limits.reached() is not None, "the next session has none left"
    with Limits(folder, job_with(hours=4), clock) as limits:
        assert limits.reached() is None


def test_a_killed_session_counts_as_far_as_it_was_seen(folder: SweepFolder, clock: Clock) -> None:
    killed = Limits(folder, job_with(hours=1), clock)
    killed.__enter__()
    for _ in range(3000):
        clock.now += 1
        assert killed.reached() is None
    lines = (folder.path / "sessions.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3000 // BEAT_S, "not one a second"
    (seen,) = folder.sessions()
    assert seen.ended is None and 3000 - BEAT_S <= seen.seconds <= 3000
    with Limits(folder, job_with(hours=1), clock) as limits:
        clock.now += 600 + BEAT_S
        assert limits.reached() is not None


def test_flops_count_what_was_executed_once(folder: SweepFolder, clock: Clock) -> None:
    folder.add_phase(replace(phase_record(1, "baseline", 40.0), training_flops=100.0))
    folder.add_phase(replace(phase_record(2, "baseline", 40.0, reused=True), training_flops=100.0))
    with Limits(folder, job_with(flops=250), clock) as limits:
        assert limits.reached() is None
        folder.add_phase(replace(phase_record(2, "learn", 40.0), training_flops=149.0))
        assert limits.reached() is None
        with (folder.path / "phases.jsonl").open("ab") as stream:
            stream.write(b'{"trial": 3, "phase": "lea')  # being written
        assert limits.reached() is None
        folder.add_phase(replace(phase_record(3, "learn", 40.0), training_flops=1.0))
        assert limits.reached() == "budget.flops = 250 is used up: 250 training FLOPs executed"
    with Limits(folder, job_with(flops=250), clock) as limits:
        assert limits.reached() is not None, "also what earlier sessions executed"


def test_the_size_of_the_folder_is_looked_at_now_and_then(
    folder: SweepFolder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = []
    size = disk.size

    def walk(path: Path) -> int:
        walks.append(clock.now)
        clock.now += 2.0
        return size(path)

    monkeypatch.setattr(disk, "size", walk)
    with Limits(folder, job_with(disk_gb=1e-3), clock) as limits:
        for _ in range(1000):
            assert limits.reached() is None
            clock.now += 1
        gaps = [later - earlier for earlier, later in zip(walks, walks[1:], strict=False)]
        assert len(walks) > 2 and min(gaps) >= max(WALK_S, 100 * 2.0), "at most a hundredth of the time"
        (folder.store / "k").mkdir(parents=True)
        (folder.store / "k" / "tensors").write_bytes(bytes(1_000_000))
        clock.now += 300
        reason = limits.reached()
    assert reason is not None and reason.startswith("budget.disk_gb = 0.001 is used up: 0.00")
    assert str(folder.path) in reason


def test_a_request_to_stop_is_heard_once(folder: SweepFolder, clock: Clock) -> None:
    with Limits(folder, job_with(hours=1), clock) as limits:
        assert limits.reached() is None
        SweepFolder(folder.path).request_stop()
        assert limits.reached() == ASKED
    assert not folder.stop_requested()
    end = last_end(folder)
    assert end is not None and end.ended == ASKED and end.limit is None
    with Limits(folder, job_with(hours=1), clock) as limits:
        assert limits.reached() is None


@pytest.mark.parametrize(
    ("error", "said"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("Ray gave up"), "Ray gave up")]
)
def test_a_session_that_breaks_off_says_why(folder: SweepFolder, clock: Clock, error: Any, said: str) -> None:
    with pytest.raises(type(error)), Limits(folder, job_with(hours=1), clock):
        clock.now += 60
        raise error
    (seen,) = folder.sessions()
    assert (seen.ended, seen.limit, seen.seconds) == (said, None, 60) and last_end(folder) is None


@pytest.mark.parametrize(
    ("limit", "budget", "more"),
    [
        ("budget.hours", {"hours": 12}, "budget.hours=24"),
        ("budget.flops", {"flops": 1e15}, "budget.flops=2e+15"),
        ("budget.disk_gb", {"disk_gb": 0.5}, "budget.disk_gb=1"),
    ],
)
def test_the_way_on_is_twice_as_much(limit: str, budget: dict[str, float], more: str) -> None:
    assert more_of(limit, job_with(**budget)) == more
