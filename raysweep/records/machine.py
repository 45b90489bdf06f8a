"""Who a process is among all processes that see a folder: its machine, its boot, its number and when it started."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


STARTED = 19
"""Place of the time at which a process started, in clock ticks since boot, in what `stat_of` returns."""


def stat_of(pid: int) -> list[str]:
    """Return the fields of a process's stat (proc(5)) from the third on; [] if there is none.

    They begin with the state, the parent, the process group and the session.
    """
    try:
        # The name, field 2, is in parentheses and may hold spaces and parentheses itself: split behind the last.
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A process, as it names itself to others."""

    host: str
    boot: str
    """Of the machine: another one each time that it starts, and for each container, which sees its own processes."""
    pid: int
    started: str
    """When the process started, as its machine counts: numbers of ended processes are given to new ones."""


class Machine:
    """The machine that this process runs on. Tests put another in its place."""

    def me(self) -> Identity:
        """Return this process."""
        return Identity(host=socket.gethostname(), boot=self.boot(), pid=os.getpid(), started=self.started(os.getpid()))

    def boot(self) -> str:
        """Return what tells this boot of this machine from others; empty where the system does not say."""
        try:
            booted = (PROC / "sys/kernel/random/boot_id").read_text().strip()
            return f"{booted}/{os.readlink(PROC / 'self/ns/pid')}"
        except OSError:
            return ""

    def started(self, pid: int) -> str:
        """Return when a process started; empty where there is none, or the system does not say."""
        stat = stat_of(pid)
        # Z for a process that has ended.
        return "" if not stat or stat[0] == "Z" else stat[STARTED]

    def is_alive(self, pid: int) -> bool:
        """Return whether there is a process of this number."""
        if PROC.is_dir():
            return self.started(pid) != ""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it is somebody else's
        return True

    def has_died(self, other: Identity) -> bool | None:
        """Return whether a process has ended; None where only its own machine could say."""
        me = self.me()
        # The same name is not enough: many machines are called localhost.
        if (other.host, other.boot) != (me.host, me.boot) or not me.boot:
            return None
        return not self.is_alive(other.pid) or self.started(other.pid) != other.started
