"""Read the mailbox's events in the driver, and notice when it gives no answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from raysweep.cluster.delivery import Reader
from raysweep.contracts.events import Event, from_json
from raysweep.errors import ClusterError

POLL_S = 1.0
"""How long one call to the mailbox waits for events."""
LOOK_S = 0.2
"""How long `turn` waits for an answer."""
SILENCE_S = 30.0
"""How long the mailbox may give no answer."""
TURN_S = 1.0
"""The most that one turn counts as silence: where the driver itself stood still, nobody was silent."""


class Post:
    """Brings the events of a mailbox to the driver, each once and in order.

    Args:
        record: writes an event. What it has not returned from is not acknowledged.
        clock: returns the time in seconds, from any start.
    """

    def __init__(self, mailbox: Any, record: Callable[[Event], None], clock: Callable[[], float] = time.monotonic):
        self._mailbox, self._clock = mailbox, clock
        self._reader: Reader[str] = Reader(write=lambda text: record(from_json(text)))
        self._call: Any = None
        """The call that has no answer yet."""
        self._silent_s, self._last_turn = 0.0, clock()

    def turn(self) -> None:
        """Record what has come, and wait for more for a moment.

        Raises:
            ClusterError: the mailbox is gone, or has given no answer for `SILENCE_S`.
        """
        if self._call is None:
            self._call = self._mailbox.events.remote(self._reader.written, POLL_S)
        if ray.wait([self._call], timeout=LOOK_S)[0]:
            call, self._call = self._call, None
            self._reader.take(self.answer(call))
            self._silent_s = 0.0
        now = self._clock()
        self._silent_s += min(now - self._last_turn, TURN_S)
        self._last_turn = now
        if self._silent_s > SILENCE_S:
            raise ClusterError(f"the sweep's mailbox gave no answer for {SILENCE_S:.0f} s.")

    def empty(self) -> None:
        """Record all that is left."""
        while news := self.answer(self._mailbox.events.remote(self._reader.written, 0.0)):
            self._reader.take(news)

    def answer(self, call: Any) -> Any:
        """Return the mailbox's answer to a call.

        Raises:
            ClusterError: as `turn`.
        """
        try:
            return ray.get(call, timeout=SILENCE_S)
        except ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"the sweep's mailbox gave no answer for {SILENCE_S:.0f} s.") from error
        except ray.exceptions.RayActorError as error:
            raise ClusterError("the process of the sweep's mailbox has ended.") from error
