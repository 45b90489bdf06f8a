"""Check what a sweep has used over all its sessions against its budget, and whether it was asked to stop."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from raysweep.job.jobfile import Job
from raysweep.job.spec import BudgetSpec
from raysweep.records import disk
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Session
from raysweep.sweep import signals

BEAT_S = 30.0
"""Seconds between two notes that a session is still at work. A killed session counts at most this much too little."""
WALK_S = 30.0
"""Seconds between two measurements of the folder's size, at least."""
WALK_SHARE = 0.01
"""Share of the time that these measurements may take."""
ASKED = "asked to stop with 'raysweep stop'"


class Limits:
    """Records one session of a driver, from `with` to its end, and says when it must stop.

        with Limits(folder, job) as limits:
            while ...:
                reason = limits.reached()

    Args:
        clock: returns the time in seconds, from any start.
    """

    def __init__(self, folder: SweepFolder, job: Job, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._budget, self._clock = folder, job.spec.budget, clock
        self._earlier = folder.sessions()
        self._session = Session(
            session=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), started=time.time()
        )
        self._began = self._beat = clock()
        # The FLOPs of the phase records that were read so far, and the byte of their file to go on from.
        self._flops, self._read = 0.0, 0
        self._bytes, self._next_walk = 0, self._began
        self._reached: tuple[str, str | None] | None = None
        """Why the session must stop, and the setting of the budget that says so."""

    def __enter__(self) -> Limits:
        # The line is written at once: should the driver be killed, the session is known to have begun.
        self._folder.add_session(self._session)
        return self

    def reached(self) -> str | None:
        """Return why the sweep must stop, or None. Cheap: called every second."""
        now = self._clock()
        if now - self._beat >= BEAT_S:
            self._beat = now
            self._folder.add_session(self._seen())
        # A limit that was reached stays so, even if files are removed: the sweep is being interrupted.
        self._reached = self._reached or self._look(now)
        return self._reached[0] if self._reached else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        reason, limit = self._reached or (None, None)
        # A limit comes first: it is why the session ends, whatever ended the `with`.
        if reason is None:
            reason = "done" if kind is None else "interrupted" if kind is KeyboardInterrupt else str(error)
        self._folder.add_session(replace(self._seen(), ended=reason, limit=limit))
        # The request was for this session; the next one must not stop at once.
        self._folder.withdraw_stop()

    def _seen(self) -> Session:
        return replace(self._session, seconds=round(self._clock() - self._began, 3))

    def _look(self, now: float) -> tuple[str, str | None] | None:
        # Cheapest first. A signal stops a sweep as a request does.
        if (name := signals.received()) is not None:
            return f"interrupted by {name}", None
        # A request is a file in the folder, so that it reaches a driver on another machine.
        if self._folder.stop_requested():
            return ASKED, None
        budget = self._budget
        hours = (sum(session.seconds for session in self._earlier) + now - self._began) / 3600
        if budget.hours is not None and hours >= budget.hours:
            return _used_up("hours", budget, f"{hours:.3g} h over all its sessions")
        if budget.flops is not None and self._executed() >= budget.flops:
            return _used_up("flops", budget, f"{self._flops:.3g} training FLOPs executed")
        if budget.disk_gb is not None and self._on_disk(now) >= budget.disk_gb * 1e9:
            return _used_up("disk_gb", budget, f"{self._bytes / 1e9:.3g} GB in {str(self._folder.path)!r}")
        return None

    def _executed(self) -> float:
        """Return the training FLOPs of all finished phases; a phase that several trials share counts once."""
        # Only lines added since the last call, and of each only the fields before its curve, which are few bytes.
        new, self._read = self._folder.phases_since(self._read, stop="curve")
        self._flops += sum(record.training_flops for record in new if not record.reused)
        return self._flops

    def _on_disk(self, now: float) -> int:
        # To walk a large store on a network disk takes long: the next walk is due when this one is 1% of the time.
        if now >= self._next_walk:
            self._bytes = disk.size(self._folder.path)
            took = self._clock() - now
            self._next_walk = now + max(WALK_S, took / WALK_SHARE)
        return self._bytes


def last_end(folder: SweepFolder) -> Session | None:
    """Return the last session of a sweep, if a limit or a request ended it. The sweep must not be running."""
    sessions = folder.sessions()
    last = sessions[-1] if sessions else None
    return last if last and (last.limit or last.ended == ASKED) else None


def more_of(limit: str, job: Job) -> str:
    """Return the setting, as for --set, that gives a sweep twice as much of a budget."""
    name = limit.removeprefix("budget.")
    # Twice, since the sweep has used up what it had: anything not above that would stop it again at once.
    allowed = getattr(job.spec.budget, name)
    return f"{limit}={2 * (allowed or 0):g}"


def _used_up(name: str, budget: BudgetSpec, used: str) -> tuple[str, str]:
    return f"budget.{name} = {getattr(budget, name):g} is used up: {used}", f"budget.{name}"
