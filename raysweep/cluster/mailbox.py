"""The mailbox between a sweep and its lanes: trials go in, events come out.

One actor a sweep. Every worker asks it "which trial now?", naming its worker group and the last trial it finished, so a
group that died and was rebuilt is given the trial that it was working on. Workers wait here, never inside a collective;
and since Ray does not end a call when its caller dies, what waits for a group that has been replaced gets nothing more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
NAMESPACE = "raysweep"


@dataclass(kw_only=True)
class Assignment:
    """A trial on a lane."""

    sequence: int
    """Grows by one with every trial of the lane."""
    trial: int
    plan: str
    """TrialPlan as JSON."""
    group: str
    """The worker group that took it, or took it over."""
    attempt: int = 1
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class WaitingTrial:
    trial: int
    plan: str
    lane: str | None
    """The only lane that may take it; None: any."""


class Mailbox:
    """Asynchronous actor: every method may wait without blocking the others."""

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._waiting: deque[WaitingTrial] = deque()
        self._lanes: dict[str, Assignment] = {}
        self._groups: defaultdict[str, list[str]] = defaultdict(list)  # of each lane, the newest last
        self._dead_lanes: dict[str, str] = {}
        self._num_lanes = 0
        self._crashes: dict[int, str] = {}
        self._events: list[Event] = []
        self._trial_events: defaultdict[int, list[Event]] = defaultdict(list)
        self._retired: set[str] = set()
        self._closed = False
        self._changed = asyncio.Condition()

    async def expect_lanes(self, count: int) -> None:
        """Say how many lanes serve trials that any lane may take."""
        self._num_lanes = count

    # The sweep's side.

    async def submit(self, trial: int, plan: str, lane: str | None = None) -> None:
        async with self._changed:
            self._waiting.append(WaitingTrial(trial=trial, plan=plan, lane=lane))
            self._fail_what_nobody_can_take()
            self._changed.notify_all()

    async def events(self, start: int, timeout_s: float) -> list[Event]:
        """Return all events from index `start` on; wait for one at most `timeout_s`."""
        return await self._wait_for(lambda: self._events[start:], timeout_s)

    async def trial_event(self, trial: int, start: int, timeout_s: float) -> list[Event]:
        """Return a trial's phase and final events from its `start`-th on; wait for one at most `timeout_s`."""
        return await self._wait_for(lambda: self._trial_events[trial][start:], timeout_s)

    async def close(self) -> None:
        """Let every worker return once no trial waits for it."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def retire(self, lane: str) -> None:
        """Let the workers of one lane return."""
        async with self._changed:
            self._retired.add(lane)
            self._changed.notify_all()

    async def lane_died(self, lane: str, reason: str) -> None:
        """Take note that a lane is gone for good: its trial fails, and what no lane is left for."""
        async with self._changed:
            self._dead_lanes[lane] = reason
            current = self._lanes.get(lane)
            if current is not None and not current.finished:
                self._finish_as_failed(current, reason)
            self._fail_what_nobody_can_take()
            self._changed.notify_all()

    # The workers' side.

    async def next_trial(self, lane: str, group: str, finished: int) -> Assignment | None:
        """Return what a worker of a lane shall do now; None when there is nothing more to come for its group.

        Args:
            group: the worker group asking; a new one takes over an unfinished trial, as its next attempt.
            finished: sequence number of the last trial that this worker finished, -1 at first.
        """
        async with self._changed:
            groups = self._groups[lane]
            if group not in groups:
                groups.append(group)
            while group == groups[-1]:
                current = self._lanes.get(lane)
                if current is not None and not current.finished:
                    if current.group != group:
                        self._take_over(current, group)
                        continue
                    if current.sequence > finished:
                        return current
                elif (waiting := self._first_waiting(lane)) is not None:
                    self._waiting.remove(waiting)
                    sequence = 0 if current is None else current.sequence + 1
                    self._lanes[lane] = Assignment(
                        sequence=sequence, trial=waiting.trial, plan=waiting.plan, group=group
                    )
                    continue
                elif self._closed or lane in self._retired:
                    break
                await self._changed.wait()
            return None

    async def post(self, event: Event) -> None:
        async with self._changed:
            self._add_event(event)
            self._changed.notify_all()

    async def finish(self, lane: str, sequence: int, event: Event) -> None:
        """Post the final event of a lane's current trial."""
        async with self._changed:
            current = self._lanes[lane]
            if current.sequence == sequence and not current.finished:
                current.finished = True
                self._add_event({**event, "type": "final", "trial": current.trial, "attempts": current.attempt})
            self._changed.notify_all()

    async def crashed(self, trial: int, reason: str) -> None:
        """Keep why a worker died, in case this is the trial's last attempt; it may take other workers along."""
        self._crashes.setdefault(trial, reason)

    # Inside, with the condition held.

    def _take_over(self, current: Assignment, group: str) -> None:
        if current.attempt >= self._max_attempts:
            reason = self._crashes.get(current.trial, "its worker group was lost (killed, or the node went away)")
            self._finish_as_failed(current, f"gave up after {current.attempt} attempts: {reason}")
            self._changed.notify_all()
        else:
            current.attempt += 1
            current.group = group
            self._crashes.pop(current.trial, None)
            self._add_event({"type": "retry", "trial": current.trial, "attempt": current.attempt})

    def _finish_as_failed(self, current: Assignment, reason: str) -> None:
        current.finished = True
        self._add_event(_failure(current.trial, reason, current.attempt))

    def _add_event(self, event: Event) -> None:
        self._events.append(event)
        if event["type"] in ("phase", "final"):
            self._trial_events[event["trial"]].append(event)

    def _first_waiting(self, lane: str) -> WaitingTrial | None:
        return next((waiting for waiting in self._waiting if waiting.lane in (None, lane)), None)

    def _fail_what_nobody_can_take(self) -> None:
        dead = self._dead_lanes
        for waiting in list(self._waiting):
            all_dead = waiting.lane is None and self._num_lanes and len(dead) >= self._num_lanes
            if waiting.lane in dead or all_dead:
                self._waiting.remove(waiting)
                reason = dead[waiting.lane] if waiting.lane in dead else next(iter(dead.values()))
                self._add_event(_failure(waiting.trial, reason, attempts=0))

    async def _wait_for(self, found: Callable[[], list[Event]], timeout_s: float) -> list[Event]:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(found), timeout_s)
            except TimeoutError:
                return []
            return found()


def _failure(trial: int, reason: str, attempts: int) -> Event:
    return {
        "type": "final",
        "trial": trial,
        "attempts": attempts,
        "status": "FAILED",
        "objective": None,
        "error": reason,
    }
