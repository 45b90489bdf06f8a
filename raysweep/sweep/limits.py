"""What a sweep may use over all its sessions, and whether somebody asked it to stop."""

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

BEAT_S = 30.0
"""Seconds between two notes that a session is still at work: what a killed one counts too little at most."""
WALK_S = 30.0
"""Seconds between two looks at the size of the folder, at least."""
WALK_SHARE = 0.01
"""Share of the time that those looks may take."""
ASKED = "asked to stop with 'raysweep stop'"


class Limits:
    """Keeps one session of a driver, from `with` to its end, and says when it must stop.

        with Limits(folder, job) as limits:
            while ...:
                reason = limits.reached()

    Args:
        clock: seconds that pass, from wherever.
    """

    def __init__(self, folder: SweepFolder, job: Job, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._budget, self._clock = folder, job.spec.budget, clock
        self._earlier = folder.sessions()
        self._session = Session(
            session=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), started=time.time()
        )
        self._began = self._beat = clock()
        self._flops, self._read = 0.0, 0
        self._bytes, self._next_walk = 0, self._began
        self._reached: tuple[str, str | None] | None = None
        """Why the session must stop, and the setting of the budget that says so."""

    def __enter__(self) -> Limits:
        self._folder.add_session(self._session)
        return self

    def reached(self) -> str | None:
        """Return why the sweep must stop now, None as long as it need not; cheap enough to be asked every second."""
        now = self._clock()
        if now - self._beat >= BEAT_S:
            self._beat = now
            self._folder.add_session(self._seen())
        self._reached = self._reached or self._look(now)
        return self._reached[0] if self._reached else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        reason, limit = self._reached or (None, None)
        if reason is None:
            reason = "done" if kind is None else "interrupted" if kind is KeyboardInterrupt else str(error)
        self._folder.add_session(replace(self._seen(), ended=reason, limit=limit))
        self._folder.withdraw_stop()

    def _seen(self) -> Session:
        return replace(self._session, seconds=round(self._clock() - self._began, 3))

    def _look(self, now: float) -> tuple[str, str | None] | None:
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
        """Return the training FLOPs of all phases that have finished; what was reused was executed once."""
        new, self._read = self._folder.phases_since(self._read, stop="curve")
        self._flops += sum(record.training_flops for record in new if not record.reused)
        return self._flops

    def _on_disk(self, now: float) -> int:
        if now >= self._next_walk:
            self._bytes = disk.size(self._folder.path)
            took = self._clock() - now
            self._next_walk = now + max(WALK_S, took / WALK_SHARE)
        return self._bytes


def last_end(folder: SweepFolder) -> Session | None:
    """Return the last session of a sweep that no driver runs, if it was ended by a limit or by request."""
    sessions = folder.sessions()
    last = sessions[-1] if sessions else None
    return last if last and (last.limit or last.ended == ASKED) else None


def more_of(limit: str, job: Job) -> str:
    """Return the setting that gives a sweep twice as much of a budget."""
    name = limit.removeprefix("budget.")
    allowed = getattr(job.spec.budget, name)
    return f"{limit}={2 * (allowed or 0):g}"


def _used_up(name: str, budget: BudgetSpec, used: str) -> tuple[str, str]:
    return f"budget.{name} = {getattr(budget, name):g} is used up: {used}", f"budget.{name}"
