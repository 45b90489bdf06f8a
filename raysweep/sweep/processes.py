"""Find workers of a sweep that are still alive on this machine. Linux only: elsewhere nothing is found."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
WORKER_TITLE = b"ray::"
"""How the command line of a Ray worker begins: Ray renames its processes."""


def left_over(pids: Iterable[int], started_before: float) -> list[int]:
    """Return which of these processes are alive and are Ray workers.

    Args:
        started_before: seconds since the epoch. A process that started later is another one: the system gives the
            numbers of ended processes to new ones.
    """
    return [pid for pid in dict.fromkeys(pids) if _is_worker(pid) and _started(pid) <= started_before]


def _is_worker(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().startswith(WORKER_TITLE)
    # There is no such process.
    except OSError:
        return False


def _started(pid: int) -> float:
    """Return when a process started, in seconds since the epoch; infinity if it has ended meanwhile."""
    try:
        # The name, field 2, is in parentheses and may hold spaces and parentheses itself: split behind the last one.
        after_name = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    boot = next(line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime"))
    # Field 22 of proc(5)'s stat, in clock ticks since boot; the list begins with field 3.
    return int(boot.split()[1]) + int(after_name[19]) / os.sysconf("SC_CLK_TCK")
