"""Lanes that wait in the mailbox for a trial."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raysweep.sweep.lanes import Assignment

Found = Assignment | Literal["idle", "leave"]


@dataclass(kw_only=True)
class IdleLane:
    """A lane that waits for a trial."""

    group: str
    finished: int
    found: asyncio.Future[Found]


class IdleLanes:
    """One call of each idle lane."""

    def __init__(self) -> None:
        self._idle: dict[str, IdleLane] = {}

    def __iter__(self) -> Iterator[str]:
        """Return the lanes that wait now, the longest first."""
        return iter(list(self._idle))

    def get(self, lane: str) -> IdleLane | None:
        return self._idle.get(lane)

    async def wait(self, lane: str, group: str, finished: int, timeout_s: float) -> Found:
        """Wait for an answer to a lane; return `idle` if there is none in time."""
        waits = asyncio.get_running_loop().create_future()
        self._idle[lane] = IdleLane(group=group, finished=finished, found=waits)
        try:
            return await asyncio.wait_for(waits, timeout_s)
        except TimeoutError:
            return "idle"
        finally:
            # Unless somebody else waits for the lane by now.
            if lane in self._idle and self._idle[lane].found is waits:
                del self._idle[lane]

    def answer(self, lane: str, found: Found) -> None:
        """Give an answer to the call of a lane, if one waits."""
        waits = self._idle.pop(lane, None)
        # The call may have been cancelled, or have come to its time limit, and not have gone on yet. Then the lane asks
        # again, and gets the same.
        if waits is not None and not waits.found.done():
            waits.found.set_result(found)
