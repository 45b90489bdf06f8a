"""Hold a sweep's lock, which one process at a time may, or have the process that holds it stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raysweep.records.atomic_folders import sweep_up
from raysweep.records.folder import SweepFolder

POLL_S = 1.0


@contextmanager
def held(folder: SweepFolder) -> Iterator[None]:
    """Hold a sweep's lock.

    Raises:
        ArchiveError: another process runs the sweep.
    """
    lock = folder.lock()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def driving(folder: SweepFolder) -> Iterator[None]:
    """Hold a sweep's lock in order to run it, after clearing away what earlier drivers left.

    Raises:
        ArchiveError: another process runs the sweep.
    """
    with held(folder):
        # Only the owner of the lock can know that no driver is about to read the request, and that no worker still
        # writes the temporary folders that `sweep_up` removes.
        folder.withdraw_stop()
        sweep_up(folder.store)
        yield


def stop_and_wait(folder: SweepFolder, waiting: Callable[[float], None]) -> bool:
    """Ask the process that runs a sweep to stop, and wait until it has; return False where none runs it.

    Args:
        waiting: called every second with the seconds waited so far.
    """
    began, running = time.monotonic(), folder.running()
    if not running:
        return False
    try:
        while running:
            # Each time anew: a driver that has only just started removes the requests that it finds.
            folder.request_stop()
            waiting(time.monotonic() - began)
            time.sleep(POLL_S)
            running = folder.running()
    finally:
        # Where the waiting was interrupted, the request stays for the driver that still runs. Once that has stopped, it
        # would stop the next one.
        if not running:
            folder.withdraw_stop()
    return True
