"""A lock belongs to one living process; of a dead one it is taken over, on any file system and from any machine."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.sweeps import contents, finished_sweep

from raysweep.cli import main
from raysweep.errors import ArchiveError, DiskFullError
from raysweep.records import locks
from raysweep.records.folder import SweepFolder
from raysweep.records.locks import DEADLINE_S, Lock
from raysweep.records.machine import Identity, Machine


class Elsewhere(Machine):
    """A machine with processes of its own."""

    def __init__(self, host: str, boot: str = "b1", alive: tuple[int, ...] = (1,), pid: int = 1) -> None:
        self.host, self.boot_id, self.alive, self.pid = host, boot, alive, pid

    def me(self) -> Identity:
        return Identity(host=self.host, boot=self.boot_id, pid=self.pid, started=self.started(self.pid))

    def started(self, pid: int) -> str:
        return f"start of {pid}" if pid in self.alive else ""

    def is_alive(self, pid: int) -> bool:
        return pid in self.alive


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def silent_for(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_one_at_a_time(path: Path) -> None:
    first, second = Lock(path), Lock(path)
    assert first.take() and not second.take() and not first.take()
    first.release()
    assert not path.exists() and second.take()
    second.release()


def test_a_lock_says_who_holds_it(path: Path) -> None:
    with Lock(path):
        holder = Lock(path).holder()
        assert holder is not None and holder.owner == Machine().me() and not holder.dead
        assert f"process {os.getpid()} on {Machine().me().host}, last seen 0 s ago" == str(holder)
    assert Lock(path).holder() is None


def test_a_process_that_died_on_this_machine_has_lost_its_lock_at_once(path: Path) -> None:
    assert Lock(path, Elsewhere("a", alive=(1, 2), pid=1)).take()
    assert not Lock(path, Elsewhere("a", alive=(1, 2), pid=2)).take(), "it is alive"
    assert Lock(path, Elsewhere("a", alive=(2,), pid=2)).take()


def test_a_number_that_another_process_has_by_now_is_no_sign_of_life(path: Path) -> None:
    class Reused(Elsewhere):
        def started(self, pid: int) -> str:
            return "later"

    assert Lock(path, Elsewhere("a", alive=(1, 2), pid=1)).take()
    assert Lock(path, Reused("a", alive=(1, 2), pid=2)).take()


def test_a_process_that_only_does_not_answer_keeps_its_lock(path: Path) -> None:
    """One that is stopped, for instance: its own machine sees that it is there."""
    assert Lock(path, Elsewhere("a", alive=(1, 2), pid=1)).take()
    silent_for(path, 100 * DEADLINE_S)
    assert not Lock(path, Elsewhere("a", alive=(1, 2), pid=2)).take()


@pytest.mark.parametrize(
    "other", [Elsewhere("b", "b2"), Elsewhere("a", "b2"), Elsewhere("a", ""), Elsewhere("b", "b1")]
)
def test_another_machine_waits_for_the_deadline(path: Path, other: Elsewhere) -> None:
    """Also one of the same name, or one that cannot say when it was started."""
    assert Lock(path, Elsewhere("a", "b1")).take()
    silent_for(path, DEADLINE_S - 10)
    assert not Lock(path, other).take()
    silent_for(path, DEADLINE_S + 10)
    assert Lock(path, other).take()


def test_silence_is_measured_by_the_clock_of_the_file_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Lock(path, Elsewhere("a")).take()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not Lock(path, Elsewhere("b", "b2")).take(), "that machine's clock is a century ahead"


def test_an_owner_touches_its_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    lock = Lock(path)
    assert lock.take()
    silent_for(path, 1_000)
    wait_for(lambda: time.time() - path.stat().st_mtime < 100)
    lock.release()


def test_an_owner_whose_lock_was_taken_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    lost = threading.Event()
    first = Lock(path, Elsewhere("a", alive=()), on_lost=lost.set)
    assert first.take() and not lost.is_set()
    second = Lock(path, Elsewhere("a", alive=(2,), pid=2))
    assert second.take()
    assert lost.wait(10)
    first.release()
    assert path.exists(), "it is the second one's by now"


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 200, b'{"owner": {"host": "a"}}', b"[]", b'{"owner": 3, "token": "x"}']
)
def test_a_lock_that_names_nobody_is_nobodys_after_a_moment(path: Path, content: bytes) -> None:
    """A machine that crashed leaves such a file; so does, for a moment, an owner that is about to write it."""
    path.write_bytes(content)
    assert not Lock(path).take()
    silent_for(path, 10)
    lock = Lock(path)
    assert lock.take()
    lock.release()


def test_of_many_that_find_a_dead_owner_one_takes_the_lock(path: Path) -> None:
    for round_ in range(20):
        assert Lock(path, Elsewhere("a", alive=())).take()
        contenders = [Lock(path) for _ in range(4)]
        barrier = threading.Barrier(len(contenders))

        def contend(lock: Lock, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return lock.take()

        # The dead owner is of another host here, so that only the deadline tells.
        silent_for(path, DEADLINE_S + 10)
        # With a pool, whose results bring up what a contender raises: one that meets another must not fail.
        with ThreadPoolExecutor(len(contenders)) as pool:
            taken = [lock for lock, took in zip(contenders, pool.map(contend, contenders), strict=True) if took]
        assert len(taken) <= 1, round_
        for lock in taken:
            lock.release()
        path.unlink(missing_ok=True)


def test_whoever_died_while_it_removed_a_lock_keeps_nobody_out(path: Path) -> None:
    assert Lock(path, Elsewhere("a", alive=())).take()
    breaking = path.with_name(".lock.breaking")
    breaking.touch()
    other = Lock(path, Elsewhere("a", alive=(2,), pid=2))
    assert not other.take()
    silent_for(breaking, DEADLINE_S + 10)
    assert other.take()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_no_lock_of_the_system_is_needed(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    import fcntl

    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(fcntl, name, refuse)
    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, refuse)
    lock = Lock(path)
    assert lock.take() and not Lock(path).take()
    lock.release()


def test_a_full_disk_leaves_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskFullError):
            Lock(path).take()
    assert not path.exists()


# The lock of a sweep.


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    monkeypatch.chdir(tmp_path)
    return finished_sweep(Path("results"))


def held_by(path: Path, owner: Identity, silent_s: float) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"owner": owner.__dict__, "token": "t"}))
    silent_for(path, silent_s)


FAR = Identity(host="node7", boot="b7", pid=77, started="1")


def unlock(*options: str) -> Any:
    return CliRunner().invoke(main, ["unlock", "heads-1", *options])


def test_unlock_says_whose_lock_it_was(sweep: SweepFolder) -> None:
    held_by(sweep.path / ".lock", FAR, 7_200)
    held_by(sweep.store / "k1.lock", replace(FAR, pid=78), 7_200)
    assert not sweep.running()
    done = unlock()
    assert done.exit_code == 0 and done.stdout.splitlines()[:2] == [
        "sweep: held by process 77 on node7, last seen 7200 s ago (dead); removed",
        "k1: held by process 78 on node7, last seen 7200 s ago (dead); removed",
    ]
    assert sweep.holder() is None and not (sweep.store / "k1.lock").exists()
    assert unlock().stdout.startswith("heads-1: no lock of a dead owner.")


def test_unlock_refuses_a_living_owner(sweep: SweepFolder) -> None:
    held_by(sweep.path / ".lock", FAR, 30)
    assert sweep.running()
    with pytest.raises(ArchiveError, match=r"by another process: process 77 on node7, last seen 30 s ago. .*unlock"):
        sweep.lock()
    refused = unlock()
    assert refused.exit_code == 2 and len(refused.stderr.splitlines()) == 1
    assert "is held by process 77 on node7, last seen 30 s ago, and that is alive" in refused.stderr
    assert "'raysweep stop heads-1'; --force" in refused.stderr and sweep.running()
    forced = unlock("--force")
    assert forced.exit_code == 0 and "(not known to be dead); removed" in forced.stdout
    assert not sweep.running()


def test_a_dead_owners_sweep_is_simply_taken(sweep: SweepFolder) -> None:
    held_by(sweep.path / ".lock", FAR, DEADLINE_S + 5)
    sweep.lock().release()


def test_a_look_changes_nothing(sweep: SweepFolder) -> None:
    held_by(sweep.path / ".lock", FAR, 30)
    before = contents(sweep.path)
    assert sweep.running() and contents(sweep.path) == before
