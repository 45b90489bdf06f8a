"""Note the signals that ask this process to stop, for the loop that looks at them.

A handler that raised an exception would raise it wherever the process happens to be: in a destructor, say, where Python
swallows it. So a handler only notes the signal. One that no loop will look at ends the process, and so does a second.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
"""The exit code: 128 + SIGINT, as shells have it."""
SAME_S = 1.0
"""Signals within this time are one: `timeout` sends two, to a process and to its group; so does a closing terminal."""
STDERR = 2
SHOW_CURSOR = "\x1b[?25h"


@dataclass(kw_only=True)
class _Noted:
    """What this process was sent; there is one for each process, as there is one set of handlers."""

    name: str | None = None
    at: float = 0.0
    watched: bool = False
    """Whether a loop looks at `name`."""


_noted = _Noted()


def received() -> str | None:
    """Return the name of the first signal that asked this process to stop, None if there was none."""
    return _noted.name


@contextmanager
def watched() -> Iterator[None]:
    """Tell that inside the block `received` is looked at, and acted upon."""
    _noted.watched = True
    try:
        yield
    finally:
        _noted.watched = False


@contextmanager
def noted(parting: Callable[[], str]) -> Iterator[None]:
    """Note signals inside the block, which must run on the main thread.

    Args:
        parting: returns what to write to stderr where a signal ends the process at once.
    """

    def note(number: int, frame: Any) -> None:
        now = time.monotonic()
        if _noted.name is not None and now - _noted.at < SAME_S:
            return
        if _noted.name is None:
            _noted.name, _noted.at = signal.Signals(number).name, now
            if _noted.watched:
                return
        # Not by an exception, see above. Ray's processes end when they miss this one.
        cursor = SHOW_CURSOR if os.isatty(STDERR) else ""
        os.write(STDERR, f"{cursor}{parting()}\n".encode())
        os._exit(INTERRUPTED)

    _noted.name = None
    before = {}
    for number in SIGNALS:
        # nohup has SIGHUP ignored, and means it. SIGINT is ignored in whatever a shell starts in the background, and
        # is meant all the same when somebody sends it.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
