"""Hold a sweep's lock, which one process at a time may, or have the process that holds it stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raysweep.records.atomic_folders import sweep_up
from raysweep.records.folder import SweepFolder

POLL_S = 1.0


@contextmanager
def held(folder: SweepFolder, on_lost: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a sweep's lock.

    Args:
        on_lost: called should another process take it, as after this machine was suspended.

    Raises:
        ArchiveError: another process runs the sweep.
    """
    lock = folder.lock(on_lost)
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
    # A driver that has lost its sweep stops as one that is told to, with a checkpoint of every trial.
    with held(folder, on_lost=lambda: os.kill(os.getpid(), signal.SIGTERM)):
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
