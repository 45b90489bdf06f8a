"""Call the mailbox from other processes: every call has a limit, and is repeated until it has an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from raysweep.cluster.mailbox import NAMESPACE
from raysweep.errors import ClusterError

ANSWER_S = 30.0
"""How long one call may take, beyond what it waits for."""
GIVE_UP_S = 300.0
"""How long a worker or a trial client repeats a call. Its sweep has ended by then, or cannot go on."""
REPEAT_S = 0.5


def mailbox_of(name: str) -> Any:
    """Return the handle of a sweep's mailbox."""
    return ray.get_actor(name, namespace=NAMESPACE)


def answer_of(call: Callable[[], Any], waits_s: float = 0.0) -> Any:
    """Return the answer to a call of the mailbox, which may be repeated without harm.

    Args:
        call: makes the call.
        waits_s: how long the mailbox itself may wait before it answers.

    Raises:
        ClusterError: there is none within `GIVE_UP_S`.
        RayActorError: the mailbox is gone.
    """
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        try:
            return ray.get(call(), timeout=waits_s + ANSWER_S)
        # Whether the mailbox got the call is not known.
        except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError) as error:
            if time.monotonic() > deadline:
                raise ClusterError(f"the sweep gave no answer for {GIVE_UP_S:.0f} s") from error
            time.sleep(REPEAT_S)


class Sender:
    """Tells the mailbox things, each of which counts once; see `Mailbox.tell`.

    Args:
        name: no other sender of the sweep has it.
    """

    def __init__(self, mailbox: Any, lane: str, group: str, name: str) -> None:
        self._mailbox, self._from = mailbox, (lane, group, name)
        self.group = group
        self._number = 0

    def tell(self, what: str, *content: Any) -> Any:
        """Tell something and return the answer. Things arrive in the order in which they are told."""
        self._number += 1
        return answer_of(lambda: self._mailbox.tell.remote(*self._from, self._number, what, *content))


class Heart:
    """Tells the mailbox that a lane gets on, at most every `every_s`; nobody waits for that to arrive."""

    def __init__(self, mailbox: Any, lane: str, group: str, every_s: float) -> None:
        self._mailbox, self._lane, self._group, self._every_s = mailbox, lane, group, every_s
        self._last = float("-inf")

    def beat(self) -> None:
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            self._mailbox.beat.remote(self._lane, self._group)
