"""Deliver what is told exactly once, though calls may be lost, repeated or answered late.

A reader says up to which event it has written everything; until then the event is kept, and given out again. A sender
numbers what it tells, and repeats a number until it has an answer; a number that is known is answered from memory.
Pure, without Ray: an asyncio test can cancel at every await.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Numbered = tuple[int, Item]


class Outbox(Generic[Item]):
    """Numbered items for one reader, from 1, each kept until the reader has acknowledged it."""

    def __init__(self) -> None:
        self._kept: deque[Numbered[Item]] = deque()
        self._last = 0
        # Set while something is kept. A reader that waits for it takes nothing away, so whatever becomes of the reader,
        # nothing is lost.
        self._filled = asyncio.Event()

    def add(self, item: Item) -> None:
        self._last += 1
        self._kept.append((self._last, item))
        self._filled.set()

    async def after(self, written: int, timeout_s: float) -> list[Numbered[Item]]:
        """Return all items with a higher number than `written`, and forget the others; wait at most `timeout_s`."""
        while self._kept and self._kept[0][0] <= written:
            self._kept.popleft()
        if not self._kept:
            self._filled.clear()
            try:
                await asyncio.wait_for(self._filled.wait(), timeout_s)
            except TimeoutError:
                pass
        # Read only now: something may have come between the timer and this line.
        return list(self._kept)


@dataclass(kw_only=True)
class Reader(Generic[Item]):
    """Writes numbered items in order, each once."""

    write: Callable[[Item], None]
    written: int = 0
    """The last number that is written. A reader that starts anew gets it from what it wrote before."""

    def take(self, news: Sequence[Numbered[Item]]) -> None:
        """Write what is new among some items."""
        for number, item in news:
            # An answer that comes late repeats what a later call has brought already.
            if number > self.written:
                self.write(item)
                self.written = number


@dataclass(kw_only=True)
class Inbox:
    """What senders have told, so that a repeated call does nothing and gets the same answer."""

    _answered: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """The last number of each sender, and its answer. A sender waits for an answer before it tells something new."""

    def take(self, sender: str, number: int, act: Callable[[], Any]) -> Any:
        """Carry out what a sender tells under a number, unless that was done; return the answer.

        Args:
            act: may not wait: it happens whole, or not at all.
        """
        last, answer = self._answered.get(sender, (0, None))
        # A number below the last one belongs to a call that was repeated since: nobody waits for this answer.
        if number <= last:
            return answer
        answer = act()
        self._answered[sender] = (number, answer)
        return answer
