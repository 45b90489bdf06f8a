"""Every wait of a driver has a limit and an owner: a mailbox or a Ray that gives no answer ends in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from support.sweeps import make_sweep

from raysweep.cluster import connection, driver
from raysweep.cluster.local_ray import end_session, members
from raysweep.cluster.post import SILENCE_S, TURN_S, Post
from raysweep.cluster.waiting import Task, unfinished, within
from raysweep.contracts.events import Event, Warned, to_json
from raysweep.errors import ClusterError
from raysweep.job.plan import Fingerprints
from raysweep.reports.live.progress import Silent
from raysweep.sweep import signals


class FakeMailbox:
    """Answers calls at once, where it answers at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[tuple[int, str]] = []
        self.silent, self.dead = False, False
        self.now = 0.0
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", self.get)

    @property
    def events(self) -> Any:
        return self

    def remote(self, written: int, timeout_s: float) -> list[tuple[int, str]]:
        return [one for one in self.kept if one[0] > written]

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.now += timeout
        return ([], calls) if self.silent else (calls, [])

    def get(self, call: Any, timeout: float) -> Any:
        if self.dead:
            raise ray.exceptions.ActorDiedError
        return call

    def add(self, number: int) -> None:
        self.kept.append((number, to_json(warned(number))))


def warned(number: int) -> Warned:
    return Warned(trial=1, text=str(number))


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> FakeMailbox:
    return FakeMailbox(monkeypatch)


def post_of(mailbox: FakeMailbox, record: Callable[[Event], None]) -> Post:
    return Post(mailbox, record, clock=lambda: mailbox.now)


def test_events_are_recorded_once_though_the_mailbox_repeats_them(mailbox: FakeMailbox) -> None:
    got: list[Event] = []
    post = post_of(mailbox, got.append)
    mailbox.add(1)
    post.turn()
    mailbox.add(2)
    post.turn()
    post.empty()
    assert got == [warned(1), warned(2)]


def test_a_mailbox_that_has_ended_ends_the_session(mailbox: FakeMailbox) -> None:
    mailbox.dead = True
    with pytest.raises(ClusterError, match="mailbox has ended"):
        post_of(mailbox, lambda event: None).turn()


def test_a_mailbox_that_gives_no_answer_ends_the_session_in_time(mailbox: FakeMailbox) -> None:
    mailbox.silent = True
    post = post_of(mailbox, lambda event: None)
    with pytest.raises(ClusterError, match="no answer for 30 s"):
        for _ in range(1_000):
            post.turn()
    assert SILENCE_S < mailbox.now < SILENCE_S + 1


def test_a_driver_that_stood_still_blames_nobody(mailbox: FakeMailbox) -> None:
    mailbox.silent = True
    post = post_of(mailbox, lambda event: None)
    post.turn()
    mailbox.now += 3600.0  # stopped, and continued
    post.turn()
    mailbox.silent = False
    post.turn()
    assert TURN_S < SILENCE_S


def test_a_call_that_never_returns_is_given_up_and_known_as_unfinished() -> None:
    hangs = threading.Event()
    with pytest.raises(ClusterError, match="the call did not end within 0 s"):
        within(0.05, "the call", hangs.wait)
    assert unfinished()
    hangs.set()
    deadline = time.monotonic() + 10.0
    while unfinished():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_call_raises_is_raised_and_who_waits_may_give_up() -> None:
    def fail() -> None:
        raise KeyError("x")

    def give_up() -> None:
        raise connection.StoppedEarly

    assert within(5.0, "the call", lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5.0, "the call", fail)
    hangs = threading.Event()
    with pytest.raises(connection.StoppedEarly):
        within(5.0, "the call", hangs.wait, give_up)
    hangs.set()


def test_tunes_thread_hears_of_the_end_wherever_it_waits(tmp_path: Path) -> None:
    """The listener used to end in silence, and the driver's thread waited for ever for a trial to be recorded."""
    from raysweep.cluster.tuning import Over, Tuning

    tuning = Tuning(
        None, None, None, None, plan_of=None, lane_of=None, scale=None, name="s", storage=tmp_path  # type: ignore[arg-type]
    )  # fmt: skip
    waits = Task("Tune", lambda: tuning._ended(1))
    waits.join(0.05)
    assert waits.is_alive()
    tuning.end()
    waits.join(10.0)
    with pytest.raises(Over):
        waits.result()


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.RaySystemError("System error: a long story\n\tof many\n\tlines"),
        ray.exceptions.GetTimeoutError("Get timed out: some object(s) not ready."),
        ray.exceptions.OwnerDiedError("00", "owner", "site"),
    ],
)
def test_any_error_of_ray_is_one_line_and_stands_in_the_sessions_record(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_sweep(tmp_path)

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(driver, "connected", fail)
    with pytest.raises(ClusterError) as raised:
        driver.run_sweep(
            folder, folder.job(), Fingerprints(model="m", data="d"), address=None, sharing=True, observer=Silent()
        )  # fmt: skip
    assert len(str(raised.value).splitlines()) == 1 and str(raised.value).startswith("Ray gave up: ")
    assert folder.sessions()[-1].ended == str(raised.value)


def test_an_error_of_our_own_is_no_error_of_ray() -> None:
    def fail() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError) as raised:
        fail()
    assert not driver.is_of_ray(raised.value)


def test_a_signal_before_ray_has_started_ends_the_session_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_sweep(tmp_path)

    class NeverStarts:
        def __init__(self, options: Any) -> None:
            self.gone = False

        def address(self) -> str | None:
            if self.gone:
                raise RuntimeError
            return None

        def end(self) -> None:
            self.gone = True

    monkeypatch.setattr(connection, "LocalRay", NeverStarts)
    monkeypatch.setattr(signals, "received", lambda: "SIGTERM")
    stopped = driver.run_sweep(
        folder, folder.job(), Fingerprints(model="m", data="d"), address=None, sharing=True, observer=Silent()
    )  # fmt: skip
    assert stopped == "interrupted by SIGTERM" == folder.sessions()[-1].ended


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_session_is_ended_with_all_its_processes_even_stopped_ones() -> None:
    script = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        (child,) = set(members(leader.pid)) - {leader.pid}
        subprocess.run(["kill", "-STOP", str(child)], check=True)
        end_session(leader.pid)
        assert leader.wait(10.0) == -signal.SIGKILL
    assert members(leader.pid) == []
