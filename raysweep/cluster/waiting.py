"""Wait for calls that may never return: each in a thread of its own, for a limited time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from raysweep.errors import ClusterError

LOOK_S = 0.1


class Task(threading.Thread):
    """A call in a thread of its own, which does not keep the process alive."""

    def __init__(self, name: str, call: Callable[[], Any]) -> None:
        super().__init__(name=name, daemon=True)
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        # Whoever waits for the result gets it.
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """Return what a call that has ended returned, or raise what it raised."""
        assert not self.is_alive(), f"{self.name} has not ended"
        if self._error is not None:
            raise self._error
        return self._result


def within(
    limit_s: float, what: str, call: Callable[[], Any], meanwhile: Callable[[], None] = lambda: None
) -> Any:  # fmt: skip
    """Return the result of a call.

    Args:
        meanwhile: called while it is waited for; may end the waiting by raising.

    Raises:
        ClusterError: it did not end within `limit_s`.
    """
    task, deadline = Task(what, call), time.monotonic() + limit_s
    while task.is_alive():
        meanwhile()
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not end within {limit_s:.0f} s")
        task.join(LOOK_S)
    return task.result()


def unfinished() -> bool:
    """Return whether a call is still under way that may never return."""
    return any(isinstance(thread, Task) for thread in threading.enumerate())
