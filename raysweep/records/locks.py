"""Locks that need nothing of the file system but that a new file is new: they work where `flock` does not.

A lock is a file that names its owner (host, boot, process) and that the owner touches as long as it lives. A process
that has died on this machine has lost its lock at once; one on another machine once it has not touched the file for
DEADLINE_S, by the clock of the file system, so that clocks of machines need not agree.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raysweep.errors import ArchiveError
from raysweep.records.disk import refuse_when_full
from raysweep.records.machine import Identity, Machine

BEAT_S = 10.0
"""Seconds between two touches of a lock that is held."""
DEADLINE_S = 90.0
"""Seconds without a touch after which an owner on another machine counts as dead."""
POLL_S = 0.2
GRACE_S = 2.0
"""Seconds that a file may be without its content, which its owner writes right after it has made it."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock."""

    owner: Identity | None
    """None where the file does not say: it is being written, or damaged."""
    token: str
    """Another one each time that a lock is taken."""
    silent_s: float
    """Seconds since the last touch, by the clock of the file system."""
    dead: bool

    def __str__(self) -> str:
        if self.owner is None:
            return f"nobody that the lock names, {self.silent_s:.0f} s ago"
        return f"process {self.owner.pid} on {self.owner.host}, last seen {self.silent_s:.0f} s ago"


class Lock:
    """A lock on a path, for one process at a time; as a context manager it waits until it has it.

    Args:
        on_lost: called where somebody else has taken the lock, as after a machine that was suspended wakes up.
    """

    def __init__(self, path: Path, machine: Machine | None = None, on_lost: Callable[[], None] = lambda: None) -> None:
        self.path, self._machine, self._on_lost = path, machine or Machine(), on_lost
        self._token = ""
        self._released = threading.Event()

    def __enter__(self) -> Lock:
        # A lock that was taken already is only given back at the end: to wait for oneself would have no end.
        while not self._is_mine(self._token) and not self.take():
            time.sleep(POLL_S)
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def take(self) -> bool:
        """Take the lock if nobody alive holds it; return whether it was taken.

        Raises:
            DiskFullError: there is no room for its file.
        """
        holder = self.holder(exactly=True)
        if holder is not None and not (holder.dead and self.remove(holder)):
            return False
        self._token = uuid.uuid4().hex
        if not self._write():
            return False
        self._released.clear()
        threading.Thread(target=self._beat, args=(self._token,), name=f"lock {self.path.name}", daemon=True).start()
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._released.set()
        if self._is_mine(self._token):
            self.path.unlink(missing_ok=True)

    def holder(self, *, exactly: bool = False) -> Holder | None:
        """Return who holds the lock, None where nobody does.

        Args:
            exactly: ask the file system for the time, for which a file is made for a moment; a look changes nothing,
                and takes this machine's clock.
        """
        try:
            content, touched = self.path.read_bytes(), self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        silent = max(0.0, (self.now() if exactly else time.time()) - touched)
        try:
            found = json.loads(content)
            owner, token = Identity(**found["owner"]), str(found["token"])
        # Cut, or filled with zeros, by a machine that crashed; or its owner is about to write it.
        except (ValueError, TypeError, KeyError):
            return Holder(owner=None, token=content.hex(), silent_s=silent, dead=silent > GRACE_S)
        died = self._machine.has_died(owner)
        return Holder(owner=owner, token=token, silent_s=silent, dead=silent > DEADLINE_S if died is None else died)

    def remove(self, holder: Holder) -> bool:
        """Remove the lock of a holder; return False where somebody else has it by now, or is removing it, too."""
        # Two processes that find the same dead owner must not remove each other's new lock: one at a time looks again
        # and removes.
        breaking = self.path.with_name(f"{self.path.name}.breaking")
        # Whoever is removing may be through between two looks, and its file gone.
        with suppress(FileNotFoundError):
            if breaking.stat().st_mtime < self.now() - DEADLINE_S:
                breaking.unlink()
        try:
            os.close(os.open(breaking, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        try:
            now = self.holder(exactly=True)
            if now is not None and now.token == holder.token:
                self.path.unlink(missing_ok=True)
            return now is None or now.token == holder.token
        finally:
            breaking.unlink(missing_ok=True)

    def now(self) -> float:
        """Return the time by the clock of the file system, which also sets the times of locks."""
        probe = self.path.with_name(f".clock-{uuid.uuid4().hex[:8]}")
        try:
            with probe.open("wb"):
                return probe.stat().st_mtime
        # A look at a folder that cannot be written: this machine's clock has to do.
        except OSError:
            return time.time()
        finally:
            probe.unlink(missing_ok=True)

    def _write(self) -> bool:
        owner = json.dumps({"owner": asdict(self._machine.me()), "token": self._token}).encode()
        with refuse_when_full(self.path):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            try:
                os.write(descriptor, owner)
            except OSError:
                self.path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        return True

    def _is_mine(self, token: str) -> bool:
        try:
            return bool(token) and json.loads(self.path.read_bytes()).get("token") == token
        except (OSError, ValueError, AttributeError):
            return False

    def _beat(self, token: str) -> None:
        while not self._released.wait(BEAT_S):
            if not self._is_mine(token):
                self._on_lost()
                return
            # Where the file system does not answer, the next touch may; an owner that is silent for too long is dead.
            with suppress(OSError):
                os.utime(self.path)


def take_or_refuse(lock: Lock, refusal: Callable[[Holder], str]) -> Lock:
    """Take a lock, or say who holds it.

    Raises:
        ArchiveError: a living process holds it; `refusal` makes the message.
    """
    deadline = time.monotonic() + 2 * GRACE_S
    while not lock.take():
        holder = lock.holder()
        # A lock without its content is either about to get it or about to count as dead.
        if holder is not None and (holder.owner is not None or time.monotonic() > deadline) and not holder.dead:
            raise ArchiveError(refusal(holder))
        time.sleep(POLL_S)
    return lock
