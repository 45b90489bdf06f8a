"""The mailbox between a sweep and its lanes: an actor around the dispatcher, in which idle callers wait.

There is one actor a sweep. Workers wait here and never inside a collective, which would time out on an idle lane.
Events come in and go out as JSON; everywhere else they are the classes of contracts/events.py.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from raysweep.contracts import Decision, Report, StoppingRule
from raysweep.contracts.events import OffLane, PhaseFinished, Question, TrialEnding, from_json, to_json
from raysweep.job.plan import TrialPlan
from raysweep.sweep.dispatcher import Dispatcher
from raysweep.sweep.lanes import Assignment

NAMESPACE = "raysweep"


class Mailbox:
    """Asynchronous actor: every method may wait without blocking the others."""

    def __init__(self, max_attempts: int, rule: StoppingRule, sharing: bool) -> None:
        self._dispatcher = Dispatcher(max_attempts=max_attempts, rule=rule, sharing=sharing)
        self._unread: list[str] = []
        """Events that the driver has not fetched yet, as JSON."""
        self._trial_events: defaultdict[int, list[str]] = defaultdict(list)
        """The finished phases and the end of each trial that its client has not fetched yet."""
        # All methods run on one event loop, so the dispatcher needs no lock of its own. The condition wakes whoever
        # waits for work or for events after each change.
        self._changed = asyncio.Condition()

    # The sweep's side.

    async def replay(self, reports: Iterable[Report], ended: Iterable[int]) -> set[int]:
        """Bring the stopping rule to the state in which earlier sessions left it; return the trials left paused."""
        return await self._do(lambda: self._dispatcher.replay(reports, ended))

    async def expect_lanes(self, count: int) -> None:
        await self._do(lambda: self._dispatcher.expect_lanes(count))

    async def submit(self, plan: str, lane: str | None = None) -> None:
        trial_plan = TrialPlan.from_json(plan)
        # Events from before a pause are no news to the client of the resumed trial.
        self._trial_events.pop(trial_plan.trial, None)
        await self._do(lambda: self._dispatcher.submit(trial_plan, lane))

    async def events(self, timeout_s: float) -> list[str]:
        """Return what happened since the last call; wait for something at most `timeout_s`."""
        events = await self._wait_for(lambda: self._unread, timeout_s)
        self._unread = []
        return events

    async def trial_event(self, trial: int, timeout_s: float) -> str | None:
        """Return a trial's next finished phase or its end; None if there is none within `timeout_s`."""
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
        """Return the trial that a worker of a lane runs next, once there is one; None when the worker shall return."""
        async with self._changed:
            while True:
                found = self._dispatcher.assignment(lane, group, finished)
                # To ask may change something, too: a new group makes a retry, or fails a trial out of attempts.
                self._hand_out()
                if found == "leave":
                    return None
                if found != "idle":
                    return found
                # Wait without a deadline: `close`, `retire` and `interrupt` notify, so that no worker waits for ever.
                await self._changed.wait()

    async def ask(self, question: str) -> Decision:
        asked = from_json(question)
        assert isinstance(asked, Question), f"{asked} asks nothing"
        return await self._do(lambda: self._dispatcher.ask(asked))

    async def post(self, event: str) -> None:
        posted = from_json(event)
        await self._do(lambda: self._dispatcher.post(posted))

    async def finish(self, lane: str, sequence: int, ending: TrialEnding) -> None:
        await self._do(lambda: self._dispatcher.finish(lane, sequence, ending))

    async def release(self, lane: str, sequence: int, decision: Decision) -> None:
        await self._do(lambda: self._dispatcher.release(lane, sequence, decision))

    async def crashed(self, trial: int, reason: str) -> None:
        await self._do(lambda: self._dispatcher.crashed(trial, reason))

    async def _do(self, act: Callable[[], Any]) -> Any:
        """Change the dispatcher, hand out the events of that, and wake all who wait."""
        async with self._changed:
            answer = act()
            self._hand_out()
            # Also without an event: an assignment may be ready now, or a lane may return.
            self._changed.notify_all()
            return answer

    def _hand_out(self) -> None:
        """Sort new events into the driver's box and those of the trials' clients."""
        events, self._dispatcher.events = self._dispatcher.events, []
        for event in events:
            text = to_json(event)
            self._unread.append(text)
            if isinstance(event, PhaseFinished | OffLane):
                self._trial_events[event.trial].append(text)
        if events:
            self._changed.notify_all()

    async def _wait_for(self, found: Callable[[], list[str]], timeout_s: float) -> list[str]:
        # With a deadline: Ray does not end a call when its caller dies, and the call would wait here for ever.
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(found), timeout_s)
            except TimeoutError:
                return []
            return found()
