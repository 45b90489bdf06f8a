"""The mailbox between a sweep and its lanes: an actor around the dispatcher, in which idle lanes wait.

There is one actor a sweep. Events come in and go out as JSON; everywhere else they are the classes of
contracts/events.py. Every call waits for a limited time only, and may be repeated: see delivery.py. At most one call of
each lane, one of each trial client and one of the driver wait here at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from raysweep.cluster.clients import Clients
from raysweep.cluster.delivery import Inbox, Numbered, Outbox
from raysweep.cluster.idle_lanes import Found, IdleLanes
from raysweep.contracts import Decision, Report, StoppingRule
from raysweep.contracts.events import (
    ClientSilent,
    LaneHeard,
    LaneSilent,
    OffLane,
    PhaseFinished,
    Question,
    Reported,
    StepLogged,
    from_json,
    to_json,
)
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import MAX_LANES
from raysweep.sweep.admission import IN_HAND
from raysweep.sweep.dispatcher import Dispatcher
from raysweep.sweep.heartbeats import Heartbeats

NAMESPACE = "raysweep"
STEPS = tuple(f'{{"event": "{kind.__name__}"' for kind in (StepLogged, Reported))
"""How questions begin that are asked from within a training."""
GIVEN_UP = Decision(action="leave", reason="its workers were given up for lost")
CALLS = 2 * (1 + IN_HAND) * MAX_LANES
"""Calls that the actor takes at a time. Ray's default of 1,000 would be used up by those that wait, and nobody could
bring them what they wait for. Those are a call of each lane and of its IN_HAND trial clients; as many may be at work.
"""


class Mailbox:
    """Asynchronous actor. What changes something does not wait, and what waits changes nothing."""

    def __init__(
        self,
        max_attempts: int,
        rule: StoppingRule,
        sharing: bool,
        lane_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # All methods run on one event loop, and none waits in the middle of a change: nothing here needs a lock.
        self._dispatcher = Dispatcher(max_attempts=max_attempts, rule=rule, sharing=sharing)
        self._events: Outbox[str] = Outbox()
        """For the driver."""
        self._told = Inbox()
        self._idle = IdleLanes()
        self._own: set[str] = set()
        """Lanes that serve a single trial each."""
        self._clock = clock
        self._lanes = Heartbeats(timeout_s=lane_timeout_s)
        self._clients = Clients()
        self._groups: dict[str, str] = {}
        """The group of each lane that was heard of last."""
        self._placement: dict[str, Any] = {}
        self._lost: set[str] = set()
        """Groups that were given up. Should one of them go on, nothing that it says counts."""

    # The driver's side.

    async def replay(self, reports: Iterable[Report], ended: Iterable[int]) -> set[int]:
        """Bring the stopping rule to the state in which earlier sessions left it; return the trials left paused."""
        return self._do(lambda: self._dispatcher.replay(reports, ended))

    async def expect_lanes(self, count: int) -> None:
        self._do(lambda: self._dispatcher.expect_lanes(count))

    async def events(self, written: int, timeout_s: float) -> list[Numbered[str]]:
        """Return the events after number `written`, which are kept until a later call says that they are written.

        Args:
            timeout_s: how long to wait for one if there is none.
        """
        self._look()
        return await self._events.after(written, timeout_s)

    async def waiting(self) -> int:
        """Return how many trials wait for a phase that another one is running."""
        return self._dispatcher.waiting

    async def never_run(self, trials: Iterable[int]) -> None:
        self._do(lambda: self._dispatcher.never_run(trials))

    async def settle(self) -> None:
        self._do(self._dispatcher.settle)

    async def close(self) -> None:
        self._do(self._dispatcher.close)
        self._answer_all()

    async def retire(self, lane: str) -> None:
        self._do(lambda: self._dispatcher.retire(lane))
        self._answer(lane)

    async def interrupt(self, reason: str) -> None:
        self._interrupt(reason)

    async def lane_begun(self, lane: str) -> None:
        """Expect signs of life of a lane from now on."""
        self._lanes.beat(lane, self._clock(), starting=True)

    async def placed(self, lane: str, placement_group: Any) -> None:
        """Keep the placement group of a lane, which whoever starts the lane anew has to remove."""
        self._placement[lane] = placement_group

    async def placement_of(self, lane: str) -> Any:
        """Return the placement group of a lane; None where it has had none."""
        return self._placement.get(lane)

    async def lane_lost(self, lane: str) -> None:
        """Give up the workers of a lane; any lane may go on with their trial."""
        self._lanes.forget(lane)
        self._stop_waiting(lane, "leave")
        self._give_up(lane)

    async def lane_died(self, lane: str, reason: str) -> None:
        """Note that a lane that was lost will not be started again."""
        self._do(lambda: self._dispatcher.lane_died(lane, reason))

    async def client_of(self, ticket: int) -> Any:
        """Return the handle of the client that started a trial under a ticket; None where it was not given."""
        return self._clients.handle_of(ticket)

    # The trial clients' side.

    async def submit(self, ticket: int, plan: str, lane: str | None = None, client: Any = None) -> None:
        """Queue a trial.

        Args:
            ticket: the number of this start of a trial. A client that is started again repeats it, and changes nothing.
            client: handle of the client's actor, for the driver to end it where it gives no sign of life.
        """
        trial_plan = TrialPlan.from_json(plan)
        if lane is not None:
            self._own.add(lane)
            self._lanes.beat(lane, self._clock(), starting=True)
        if self._clients.started(trial_plan.trial, ticket, client, self._clock()):
            self._do(lambda: self._dispatcher.submit(trial_plan, lane))

    async def trial_events(self, trial: int, taken: int, timeout_s: float) -> list[Numbered[str]]:
        """Return a trial's finished phases and its end after number `taken`; see `events`."""
        return await self._clients.box_of(trial).after(taken, timeout_s)

    async def client_beat(self, ticket: int) -> None:
        """Take a sign of life of a trial's client."""
        self._clients.beat(ticket, self._clock())

    async def is_silent(self, lane: str) -> bool:
        """Return whether no more signs of life are expected of a lane."""
        return not self._lanes.expects(lane)

    # The workers' side.

    async def beat(self, lane: str, group: str) -> None:
        """Take a sign of life of a lane: a step, a batch of an evaluation or a checkpoint."""
        self._heard(lane, group)

    async def next_trial(self, lane: str, group: str, finished: int, timeout_s: float) -> Found:
        """Return the trial that a lane runs next; `leave` when its workers shall return, `idle` if there is none yet.

        Called by rank 0 for all ranks. An answer that gets lost is no harm: the next call gets the same trial.

        Args:
            timeout_s: how long to wait for a trial.
        """
        if not self._heard(lane, group):
            return "leave"
        # Who waits for the lane already has lost its answer, or is of a group that is lost. Or this call is the one
        # that comes late: "idle" makes the other one ask again.
        self._stop_waiting(lane, "idle")
        found = self._found(lane, group, finished)
        if found != "idle":
            self._stop_waiting(lane, found)
            return found
        return await self._idle.wait(lane, group, finished, timeout_s)

    async def tell(self, lane: str, group: str, sender: str, number: int, what: str, *content: Any) -> Any:
        """Take in what a worker tells, once; return the answer.

        Args:
            number: ascends with all that a sender tells; a call that is repeated has the same number.
            what: `ask`, `post`, `finish`, `release`, `crashed` or `interrupt`.
        """
        # Behind a phase, and behind the claim of the next, a model and data may be loaded.
        if not self._heard(lane, group, loading=what != "ask" or not content[0].startswith(STEPS)):
            return GIVEN_UP if what == "ask" else None
        acts: dict[str, Callable[..., Any]] = {
            "ask": self._ask,
            "post": lambda event: self._dispatcher.post(from_json(event)),
            "finish": self._dispatcher.finish,
            "release": self._dispatcher.release,
            "crashed": self._dispatcher.crashed,
            "interrupt": self._interrupt,
        }
        return self._told.take(sender, number, lambda: self._do(lambda: acts[what](*content)))

    def _ask(self, question: str) -> Decision:
        asked = from_json(question)
        assert isinstance(asked, Question), f"{asked} asks nothing"
        return self._dispatcher.ask(asked)

    # Inside.

    def _heard(self, lane: str, group: str, *, loading: bool = False) -> bool:
        """Note a sign of life of a lane; return False where that group was given up."""
        if group in self._lost:
            return False
        self._groups[lane] = group
        if self._lanes.beat(lane, self._clock(), loading=loading):
            self._events.add(to_json(LaneHeard(lane=lane)))
        return True

    def _look(self) -> None:
        """Tell of lanes and clients that are silent. Lanes that are so for too long are given up."""
        now = self._clock()
        for silence in self._lanes.look(now):
            self._events.add(to_json(LaneSilent(lane=silence.name, seconds=silence.seconds, lost=silence.overdue)))
            if silence.overdue:
                self._give_up(silence.name)
        for ticket in self._clients.silent(now):
            self._events.add(to_json(ClientSilent(ticket=ticket)))

    def _give_up(self, lane: str) -> None:
        self._lost.add(self._groups.pop(lane, ""))
        self._do(lambda: self._dispatcher.lane_lost(lane))

    def _do(self, act: Callable[[], Any]) -> Any:
        """Change the dispatcher, hand out the events of that, and give lanes that wait what is ready."""
        answer = act()
        self._hand_out()
        for lane in self._idle:
            # Lanes are alike: where one finds nothing, the next ones would not either. Lanes of single trials are not.
            if not self._answer(lane) and lane not in self._own:
                break
        return answer

    def _interrupt(self, reason: str) -> None:
        self._dispatcher.interrupt(reason)
        self._hand_out()
        self._answer_all()

    def _found(self, lane: str, group: str, finished: int) -> Found:
        found = self._dispatcher.assignment(lane, group, finished)
        # To ask may change something, too: a new group makes a retry, or fails a trial out of attempts.
        self._hand_out()
        return found

    def _answer(self, lane: str) -> bool:
        """Give a lane that waits what there is for it; return whether there was something."""
        waits = self._idle.get(lane)
        found: Found = "idle" if waits is None else self._found(lane, waits.group, waits.finished)
        if found == "idle":
            return False
        self._stop_waiting(lane, found)
        return True

    def _answer_all(self) -> None:
        for lane in self._idle:
            self._answer(lane)

    def _stop_waiting(self, lane: str, found: Found) -> None:
        if found == "leave":
            self._lanes.forget(lane)
        elif found != "idle":
            self._lanes.beat(lane, self._clock(), loading=True)
        self._idle.answer(lane, found)

    def _hand_out(self) -> None:
        """Sort new events into the driver's box and those of the trials' clients."""
        events, self._dispatcher.events = self._dispatcher.events, []
        for event in events:
            text = to_json(event)
            self._events.add(text)
            if isinstance(event, PhaseFinished | OffLane):
                self._clients.deliver(event.trial, text)
