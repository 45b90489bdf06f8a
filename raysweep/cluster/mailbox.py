"""The mailbox between a sweep and its lanes: an actor around the dispatcher, in which whoever has nothing to do waits.

One actor a sweep. Workers wait here, never inside a collective; and since Ray does not end a call when its caller dies,
what waits for a group that has been replaced gets nothing more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from raysweep.contracts import Decision, Report, StoppingRule
from raysweep.job.plan import TrialPlan
from raysweep.sweep.dispatcher import ENDINGS, Assignment, Dispatcher, Event

NAMESPACE = "raysweep"


class Mailbox:
    """Asynchronous actor: every method may wait without blocking the others."""

    def __init__(self, max_attempts: int, rule: StoppingRule, sharing: bool) -> None:
        self._dispatcher = Dispatcher(max_attempts=max_attempts, rule=rule, sharing=sharing)
        self._unread: list[Event] = []
        self._trial_events: defaultdict[int, list[Event]] = defaultdict(list)
        self._changed = asyncio.Condition()

    # The sweep's side.

    async def replay(self, reports: Iterable[Report], ended: Iterable[int]) -> set[int]:
        """Tell the stopping rule of earlier sessions; return the trials that they left paused."""
        return await self._do(lambda: self._dispatcher.replay(reports, ended))

    async def expect_lanes(self, count: int) -> None:
        await self._do(lambda: self._dispatcher.expect_lanes(count))

    async def submit(self, plan: str, lane: str | None = None) -> None:
        trial_plan = TrialPlan.from_json(plan)
        self._trial_events.pop(trial_plan.trial, None)  # of the time before a pause
        await self._do(lambda: self._dispatcher.submit(trial_plan, lane))

    async def events(self, timeout_s: float) -> list[Event]:
        """Return what happened since the last call; wait for something at most `timeout_s`."""
        events = await self._wait_for(lambda: self._unread, timeout_s)
        self._unread = []
        return events

    async def trial_event(self, trial: int, timeout_s: float) -> Event | None:
        """Return a trial's next phase or ending; None if there is none within `timeout_s`."""
        events = await self._wait_for(lambda: self._trial_events[trial], timeout_s)
        return events.pop(0) if events else None

    async def waiting(self) -> int:
        """Return how many trials wait for a phase that another one is running."""
        return self._dispatcher.waiting

    async def never_run(self, trials: Iterable[int]) -> None:
        await self._do(lambda: self._dispatcher.never_run(trials))

    async def settle(self) -> None:
        await self._do(self._dispatcher.settle)

    async def close(self) -> None:
        await self._do(self._dispatcher.close)

    async def retire(self, lane: str) -> None:
        await self._do(lambda: self._dispatcher.retire(lane))

    async def interrupt(self, reason: str) -> None:
        await self._do(lambda: self._dispatcher.interrupt(reason))

    async def lane_died(self, lane: str, reason: str) -> None:
        await self._do(lambda: self._dispatcher.lane_died(lane, reason))

    # The workers' side.

    async def next_trial(self, lane: str, group: str, finished: int) -> Assignment | None:
        """Return what a worker of a lane shall do now, once there is something; None when it shall return."""
        async with self._changed:
            while True:
                found = self._dispatcher.assignment(lane, group, finished)
                self._hand_out()
                if found == "leave":
                    return None
                if found != "idle":
                    return found
                await self._changed.wait()

    async def ask(self, event: Event) -> Decision:
        return await self._do(lambda: self._dispatcher.ask(event))

    async def post(self, event: Event) -> None:
        await self._do(lambda: self._dispatcher.post(event))

    async def finish(self, lane: str, sequence: int, ending: Event) -> None:
        await self._do(lambda: self._dispatcher.finish(lane, sequence, ending))

    async def release(self, lane: str, sequence: int, decision: Decision) -> None:
        await self._do(lambda: self._dispatcher.release(lane, sequence, decision))

    async def crashed(self, trial: int, reason: str) -> None:
        await self._do(lambda: self._dispatcher.crashed(trial, reason))

    async def _do(self, act: Callable[[], Any]) -> Any:
        async with self._changed:
            answer = act()
            self._hand_out()
            self._changed.notify_all()
            return answer

    def _hand_out(self) -> None:
        """Sort new events into the sweep's box and those of the trials' clients."""
        events, self._dispatcher.events = self._dispatcher.events, []
        self._unread += events
        for event in events:
            if event["type"] in ("phase", *ENDINGS):
                self._trial_events[event["trial"]].append(event)
        if events:
            self._changed.notify_all()

    async def _wait_for(self, found: Callable[[], list[Event]], timeout_s: float) -> list[Event]:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(found), timeout_s)
            except TimeoutError:
                return []
            return found()
