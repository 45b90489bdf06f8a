"""Find workers of a sweep that are still alive on this machine. Linux only: elsewhere nothing is found."""

from __future__ import annotations

import os
from collections.abc import Iterable

from raysweep.records.machine import PROC, STARTED, stat_of

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
    stat = stat_of(pid)
    if not stat:
        return float("inf")
    boot = next(line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime"))
    return int(boot.split()[1]) + int(stat[STARTED]) / os.sysconf("SC_CLK_TCK")
