"""The mailbox gives each trial to one lane, survives the death of any worker group, and loses no event."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from raysweep.cluster.mailbox import Mailbox
from raysweep.contracts import Decision
from raysweep.contracts.events import (
    ClientSilent,
    Event,
    LaneHeard,
    LaneSilent,
    LaneStarted,
    PhaseClaimed,
    PhaseFinished,
    StepLogged,
    TrialEnding,
    TrialFinished,
    TrialLeft,
    TrialPaused,
    TrialRetried,
    from_json,
    to_json,
)
from raysweep.job.plan import PhasePlan, TrialPlan
from raysweep.strategies.schedulers.none import Rule
from raysweep.sweep.lanes import Assignment

COMPLETE = TrialEnding(status="COMPLETE")
NEVER = 30.0
ROUND_S = 20.0


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test; what hangs fails."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), NEVER))

    return run


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox(max_attempts=2, rule=Rule(), sharing=True, lane_timeout_s=NEVER)


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


NUMBERS = itertools.count(1)


async def tell(mailbox: Mailbox, what: str, *content: Any, group: str = "g") -> Any:
    """Tell something new."""
    return await mailbox.tell("lane-0", group, "a worker", next(NUMBERS), what, *content)


class Group:
    """A worker group as the mailbox sees it: rank 0, which asks for all."""

    def __init__(self, mailbox: Mailbox, name: str, lane: str = "lane-0") -> None:
        self.mailbox, self.name, self.lane = mailbox, name, lane
        self.finished = -1

    async def ask(self) -> Assignment | None:
        while (found := await self.mailbox.next_trial(self.lane, self.name, self.finished, ROUND_S)) == "idle":
            pass
        return None if found == "leave" else found

    def asking(self) -> asyncio.Task[Assignment | None]:
        return asyncio.create_task(self.ask())

    async def take(self) -> Assignment:
        """Ask; there must be a trial."""
        assignment = await self.ask()
        assert assignment is not None
        return assignment

    async def finish(self, assignment: Assignment) -> None:
        number = next(NUMBERS)
        await self.mailbox.tell(
            self.lane, self.name, self.name, number, "finish", self.lane, assignment.sequence, COMPLETE
        )
        self.finished = assignment.sequence

    async def run(self) -> Assignment:
        assignment = await self.take()
        await self.finish(assignment)
        return assignment


def plan_of(trial: int, key: str | None = None) -> str:
    """Return the plan of a trial of one phase, by default one that no other trial has."""
    phase = PhasePlan(kind="baseline", cycle=0, params={}, key=key or f"key-{trial}")
    empty: dict[str, Any] = {"values": {}, "model": {}, "data": {}, "training": {}, "halting": {}, "controls": {}}
    return TrialPlan(trial=trial, seed=0, checkpoint_every_steps=1, phases=(phase,), **empty).to_json()


def attempt(mailbox: Mailbox, trial: int) -> int:
    """Return at which attempt a trial is that has not ended."""
    return mailbox._dispatcher._trials[trial].attempts.number


def logged(trial: int, step: int = 10) -> Event:
    return StepLogged(trial=trial, arm="main", phase="learn", cycle=1, steps=20, point={"step": float(step)})


def finished(trial: int) -> Event:
    return PhaseFinished(trial=trial, record={"key": f"key-{trial}"})


SEEN: WeakKeyDictionary[Mailbox, list[Event]] = WeakKeyDictionary()


async def everything(mailbox: Mailbox) -> list[Event]:
    """Return all that has happened so far."""
    await new_events(mailbox)
    return SEEN[mailbox]


async def new_events(mailbox: Mailbox, timeout_s: float = 0.01) -> list[Event]:
    seen = SEEN.setdefault(mailbox, [])
    found = [from_json(event) for _, event in await mailbox.events(len(seen), timeout_s)]
    seen += found
    return found


async def trial_events(mailbox: Mailbox, trial: int, taken: int = 0, timeout_s: float = 0.01) -> list[Event]:
    return [from_json(event) for _, event in await mailbox.trial_events(trial, taken, timeout_s)]


async def submit(mailbox: Mailbox, *trials: int, lane: str | None = None) -> None:
    for trial in trials:
        await mailbox.submit(next(NUMBERS), plan_of(trial), lane)


async def finals(mailbox: Mailbox) -> dict[int, TrialFinished]:
    """Return the final events by trial; no trial may have two."""
    found = [event for event in await everything(mailbox) if isinstance(event, TrialFinished)]
    assert len({event.trial for event in found}) == len(found)
    return {event.trial: event for event in found}


async def retries(mailbox: Mailbox) -> list[tuple[int, int]]:
    return [(e.trial, e.attempt) for e in await everything(mailbox) if isinstance(e, TrialRetried)]


# One lane, nothing dies.


@on_a_loop
async def test_a_lane_that_waits_before_there_is_a_trial_gets_it(mailbox: Mailbox) -> None:
    asked = Group(mailbox, "g").asking()
    await settle()
    assert not asked.done()
    await submit(mailbox, 1, 2)
    given = await asked
    assert given is not None and (given.trial, given.plan, given.sequence) == (1, plan_of(1), 0)


@on_a_loop
async def test_a_lane_whose_answer_was_lost_gets_the_same_trial_again(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    group = Group(mailbox, "g")
    assert await group.take() == await group.take()
    lost = Group(mailbox, "h", "lane-1").asking()
    await settle()
    lost.cancel()
    assert (await Group(mailbox, "h", "lane-1").take()).trial == 2
    assert await retries(mailbox) == []


@on_a_loop
async def test_a_lane_hears_within_a_round_that_there_is_nothing_yet(mailbox: Mailbox) -> None:
    assert await mailbox.next_trial("lane-0", "g", -1, 0.01) == "idle"
    await submit(mailbox, 1)
    assert (await Group(mailbox, "g").take()).trial == 1


@on_a_loop
async def test_a_call_that_comes_late_does_not_send_its_own_lane_away(mailbox: Mailbox) -> None:
    group = Group(mailbox, "g")
    waiting = group.asking()
    await settle()
    late = asyncio.create_task(mailbox.next_trial("lane-0", "g", -1, 0.01))
    await submit(mailbox, 1)
    given = await waiting
    assert given is not None and given.trial == 1
    await late


@on_a_loop
async def test_idle_lanes_hold_one_call_each_and_a_change_wakes_only_whom_it_concerns(mailbox: Mailbox) -> None:
    asked: list[str] = []
    find = mailbox._dispatcher.assignment

    def counted(lane: str, group: str, finished: int) -> Any:
        asked.append(lane)
        return find(lane, group, finished)

    mailbox._dispatcher.assignment = counted  # type: ignore[method-assign]
    lanes = [Group(mailbox, "g", f"lane-{number}").asking() for number in range(100)]
    await settle()
    asked.clear()
    await tell(mailbox, "post", to_json(logged(1)))
    assert len(asked) == 1
    await submit(mailbox, 1)
    assert asked[1:] == ["lane-0", "lane-1"]
    await mailbox.close()
    await asyncio.gather(*lanes)


@on_a_loop
async def test_a_repeated_start_of_a_trial_changes_nothing_and_its_client_reads_on(mailbox: Mailbox) -> None:
    await mailbox.submit(7, plan_of(1))
    group = Group(mailbox, "g")
    first = await group.take()
    await tell(mailbox, "post", to_json(finished(1)))
    await mailbox.submit(7, plan_of(1))  # its client died, and was started again
    other = Group(mailbox, "h", "lane-1").asking()
    await settle()
    assert not other.done(), "it would run twice"
    await group.finish(first)
    await mailbox.submit(7, plan_of(1))
    await settle()
    assert not other.done(), "it has ended"
    ended = TrialFinished(trial=1, ending=COMPLETE, attempts=1)
    assert await trial_events(mailbox, 1) == [finished(1), ended]
    assert await trial_events(mailbox, 1, taken=1) == [ended]
    await mailbox.submit(8, plan_of(1))  # it was paused, and goes on
    assert (given := await other) is not None and given.trial == 1
    assert await trial_events(mailbox, 1) == []


@on_a_loop
async def test_trials_are_given_in_the_order_in_which_they_came(mailbox: Mailbox) -> None:
    await submit(mailbox, 3, 1, 2)
    group = Group(mailbox, "g")
    assert [(await group.run()).trial for _ in range(3)] == [3, 1, 2]


@on_a_loop
async def test_the_final_event_says_how_the_trial_ended_and_at_which_attempt(mailbox: Mailbox) -> None:
    await submit(mailbox, 1)
    await Group(mailbox, "g").run()
    assert (await finals(mailbox))[1] == TrialFinished(trial=1, ending=COMPLETE, attempts=1)


@on_a_loop
async def test_a_trial_is_finished_once_however_often_that_is_told(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    group = Group(mailbox, "g")
    first = await group.run()
    await group.finish(first)
    second = await group.take()
    await group.finish(first)  # a message of long ago does not end the trial that runs now
    assert list(await finals(mailbox)) == [1]
    await group.finish(second)
    assert list(await finals(mailbox)) == [1, 2]


# A worker group dies.


@on_a_loop
async def test_a_restarted_group_gets_the_unfinished_trial_as_its_next_attempt(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    lost, new = Group(mailbox, "g1"), Group(mailbox, "g2")
    await lost.take()
    again = await new.take()
    assert (again.trial, attempt(mailbox, 1), again.plan) == (1, 2, plan_of(1))
    await new.finish(again)
    assert (await finals(mailbox))[1].attempts == 2
    assert (await new.take()).trial == 2


@on_a_loop
async def test_a_restart_is_one_attempt_however_many_ranks_ask(mailbox: Mailbox) -> None:
    await submit(mailbox, 1)
    for _ in range(4):
        await Group(mailbox, "g1").take()
    assert [(await Group(mailbox, "g2").take()).trial for _ in range(4)] == [1, 1, 1, 1]
    assert attempt(mailbox, 1) == 2
    assert await retries(mailbox) == [(1, 2)]


@on_a_loop
async def test_the_next_trial_after_a_retried_one_starts_at_attempt_one(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    await Group(mailbox, "g1").take()
    new = Group(mailbox, "g2")
    await new.run()
    await new.run()
    assert {trial: event.attempts for trial, event in (await finals(mailbox)).items()} == {1: 2, 2: 1}


@on_a_loop
async def test_a_finished_trial_is_not_given_again_to_a_restarted_group(mailbox: Mailbox) -> None:
    await submit(mailbox, 1)
    await Group(mailbox, "g1").run()
    new = Group(mailbox, "g2").asking()
    await settle()
    assert not new.done()
    await submit(mailbox, 2)
    assert (given := await new) is not None and given.trial == 2
    assert attempt(mailbox, 2) == 1


@on_a_loop
async def test_those_who_wait_for_a_dead_group_take_no_trial(mailbox: Mailbox) -> None:
    """Ray does not end a call when its caller dies: it still waits in the mailbox when the next trial comes."""
    await submit(mailbox, 1)
    dead = Group(mailbox, "g1")
    await dead.run()
    orphan = dead.asking()
    await settle()
    new = Group(mailbox, "g2").asking()
    await settle()
    await submit(mailbox, 2)
    assert (given := await new) is not None and given.trial == 2
    assert attempt(mailbox, 2) == 1
    assert await orphan is None
    assert await retries(mailbox) == []


@on_a_loop
async def test_a_group_that_was_replaced_gets_nothing_more(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    replaced, new = Group(mailbox, "g1"), Group(mailbox, "g2")
    await replaced.take()
    await new.take()
    assert await replaced.ask() is None
    assert await retries(mailbox) == [(1, 2)]


@on_a_loop
async def test_a_trial_out_of_attempts_fails_with_the_reason_of_the_crash_and_the_lane_goes_on(
    mailbox: Mailbox,
) -> None:
    await submit(mailbox, 1, 2)
    await Group(mailbox, "g1").take()
    await Group(mailbox, "g2").take()
    await tell(mailbox, "crashed", 1, "rank 1: ValueError: no such thing")
    following = await Group(mailbox, "g3").take()
    assert (following.trial, attempt(mailbox, 2)) == (2, 1)
    failed = (await finals(mailbox))[1]
    error = failed.ending.error or ""
    assert (failed.ending.status, failed.attempts) == ("FAILED", 2)
    assert "2 attempts" in error and "rank 1: ValueError: no such thing" in error


@on_a_loop
async def test_a_killed_worker_leaves_no_reason_and_the_message_says_so(mailbox: Mailbox) -> None:
    await submit(mailbox, 1)
    for name in ("g1", "g2"):
        await Group(mailbox, name).take()
    orphan = Group(mailbox, "g3").asking()
    await settle()
    assert "killed" in ((await finals(mailbox))[1].ending.error or "")
    assert not orphan.done()  # it waits for another trial


@on_a_loop
async def test_the_first_rank_to_crash_is_the_reason_not_those_that_it_took_along(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    await Group(mailbox, "g1").take()
    await Group(mailbox, "g2").take()
    await tell(mailbox, "crashed", 1, "rank 1: ValueError: the cause")
    await tell(mailbox, "crashed", 1, "rank 0: connection closed by peer")
    await Group(mailbox, "g3").take()
    error = (await finals(mailbox))[1].ending.error or ""
    assert "the cause" in error and "closed by peer" not in error


@on_a_loop
async def test_the_reason_is_that_of_the_last_attempt(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    await Group(mailbox, "g1").take()
    await tell(mailbox, "crashed", 1, "of the first attempt")
    await Group(mailbox, "g2").take()
    await tell(mailbox, "crashed", 1, "of the second attempt")
    await Group(mailbox, "g3").take()
    error = (await finals(mailbox))[1].ending.error or ""
    assert "of the second attempt" in error and "of the first attempt" not in error


@on_a_loop
async def test_attempts_of_one_trial_are_not_charged_to_the_next() -> None:
    mailbox = Mailbox(max_attempts=1, rule=Rule(), sharing=True, lane_timeout_s=NEVER)
    await submit(mailbox, 1, 2, 3)
    for number in range(3):
        assert attempt(mailbox, (await Group(mailbox, f"g{number}").take()).trial) == 1
    assert {trial: event.attempts for trial, event in (await finals(mailbox)).items()} == {1: 1, 2: 1}


# Several lanes.


@on_a_loop
async def test_lanes_get_distinct_trials(mailbox: Mailbox) -> None:
    a, b = Group(mailbox, "g", "lane-0"), Group(mailbox, "h", "lane-1")
    asked = [a.asking(), b.asking()]
    await settle()
    await submit(mailbox, 1, 2, 3)
    given = [assignment for task in asked if (assignment := await task)]
    assert [assignment.trial for assignment in given] == [1, 2]
    await a.finish(given[0])
    assert (await a.take()).trial == 3


@on_a_loop
async def test_every_trial_runs_once_on_busy_lanes_whose_groups_die(mailbox: Mailbox) -> None:
    trials = list(range(1, 41))
    taken: list[int] = []

    async def lane(name: str) -> None:
        number, group = 0, Group(mailbox, f"{name}-0", name)
        while (assignment := await group.ask()) is not None:
            await asyncio.sleep(0)
            if (
                assignment.trial % 5 == 0 and attempt(mailbox, assignment.trial) == 1
            ):  # dies, while another rank still waits
                number += 1
                orphan = Group(mailbox, group.name, name)
                orphan.finished = assignment.sequence
                orphans.append(orphan.asking())
                group = Group(mailbox, f"{name}-{number}", name)
                continue
            taken.append(assignment.trial)
            await group.finish(assignment)

    orphans: list[asyncio.Task[Assignment | None]] = []
    lanes = [asyncio.create_task(lane(f"lane-{n}")) for n in range(3)]
    for trial in trials:
        await submit(mailbox, trial)
        await asyncio.sleep(0)
    await mailbox.close()
    await asyncio.gather(*lanes)
    assert sorted(taken) == trials
    assert {trial: event.attempts for trial, event in (await finals(mailbox)).items()} == {
        trial: 2 if trial % 5 == 0 else 1 for trial in trials
    }
    assert await asyncio.gather(*orphans) == [None] * 8


@on_a_loop
async def test_a_trial_with_a_lane_of_its_own_is_left_to_it(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, lane="trial-1")
    await submit(mailbox, 2)
    assert (await Group(mailbox, "g", "lane-0").take()).trial == 2
    assert (await Group(mailbox, "h", "trial-1").take()).trial == 1


# The end.


@on_a_loop
async def test_close_lets_all_return_but_only_when_no_trial_waits(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    await mailbox.close()
    group = Group(mailbox, "g")
    assert [(await group.run()).trial for _ in range(2)] == [1, 2]
    assert (await group.ask(), await Group(mailbox, "h", "lane-1").ask()) == (None, None)


@on_a_loop
async def test_close_wakes_those_who_wait(mailbox: Mailbox) -> None:
    asked = [Group(mailbox, "g").asking(), Group(mailbox, "h", "lane-1").asking()]
    await settle()
    await mailbox.close()
    assert await asyncio.gather(*asked) == [None, None]


@on_a_loop
async def test_retire_lets_one_lane_return(mailbox: Mailbox) -> None:
    retired, other = Group(mailbox, "g", "lane-0").asking(), Group(mailbox, "h", "lane-1").asking()
    await settle()
    await mailbox.retire("lane-0")
    assert await retired is None
    await settle()
    assert not other.done()
    await submit(mailbox, 1)
    assert (assignment := await other) is not None and assignment.trial == 1


@on_a_loop
async def test_a_group_restarted_after_the_end_returns_at_once(mailbox: Mailbox) -> None:
    await submit(mailbox, 1)
    await Group(mailbox, "g1").run()
    await mailbox.close()
    assert await Group(mailbox, "g2").ask() is None


# A lane is gone for good.


@on_a_loop
async def test_a_dead_lane_fails_its_trial_and_leaves_the_rest_to_the_others(mailbox: Mailbox) -> None:
    await mailbox.expect_lanes(2)
    await submit(mailbox, 1, 2)
    await Group(mailbox, "g", "lane-0").take()
    await mailbox.lane_died("lane-0", "lane-0 was lost: no node")
    lost = TrialEnding(status="FAILED", error="lane-0 was lost: no node", cluster_fault=True)
    assert (await finals(mailbox))[1] == TrialFinished(trial=1, ending=lost, attempts=1)
    assert (await Group(mailbox, "h", "lane-1").take()).trial == 2


@on_a_loop
async def test_without_a_lane_left_all_waiting_trials_fail_and_later_ones_too(mailbox: Mailbox) -> None:
    await mailbox.expect_lanes(2)
    await submit(mailbox, 1, 2, 3)
    await Group(mailbox, "g", "lane-0").take()
    await mailbox.lane_died("lane-0", "first loss")
    assert list(await finals(mailbox)) == [1]
    await mailbox.lane_died("lane-1", "second loss")
    await submit(mailbox, 4)
    ended = await finals(mailbox)
    assert {trial: (event.ending.status, event.attempts) for trial, event in ended.items()} == {
        1: ("FAILED", 1), 2: ("FAILED", 0), 3: ("FAILED", 0), 4: ("FAILED", 0),
    }  # fmt: skip
    assert all("loss" in (event.ending.error or "") for event in ended.values())


@on_a_loop
async def test_a_trial_fails_with_the_lane_of_its_own_and_with_no_other(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, lane="trial-1")
    await submit(mailbox, 2, lane="trial-2")
    await mailbox.lane_died("trial-1", "lost")
    assert list(await finals(mailbox)) == [1]
    assert (await Group(mailbox, "g", "trial-2").take()).trial == 2


@on_a_loop
async def test_a_lane_that_dies_between_trials_fails_nothing(mailbox: Mailbox) -> None:
    await mailbox.expect_lanes(2)
    await submit(mailbox, 1)
    await Group(mailbox, "g", "lane-0").run()
    await mailbox.lane_died("lane-0", "lost")
    assert [event.ending.status for event in (await finals(mailbox)).values()] == ["COMPLETE"]


# Events.


@on_a_loop
async def test_events_come_in_order_and_once(mailbox: Mailbox) -> None:
    posted = [logged(1, step) for step in range(5)]
    for event in posted[:3]:
        await tell(mailbox, "post", to_json(event))
    assert await new_events(mailbox) == posted[:3]
    for event in posted[3:]:
        await tell(mailbox, "post", to_json(event))
    assert await new_events(mailbox) == posted[3:]
    assert await new_events(mailbox) == []


@on_a_loop
async def test_whoever_asks_for_events_waits_for_the_next_one(mailbox: Mailbox) -> None:
    asked = asyncio.create_task(new_events(mailbox, NEVER))
    await settle()
    assert not asked.done()
    await tell(mailbox, "post", to_json(logged(1)))
    assert await asked == [logged(1)]


@on_a_loop
async def test_what_asks_for_no_answer_cannot_be_asked(mailbox: Mailbox) -> None:
    assert await tell(mailbox, "ask", to_json(logged(1))) == Decision(action="go")
    with pytest.raises(AssertionError, match="LaneStarted"):
        await tell(mailbox, "ask", to_json(LaneStarted(lane="l", group="g", pids=[])))


@on_a_loop
async def test_events_are_kept_until_the_reader_says_that_they_are_written(mailbox: Mailbox) -> None:
    for step in range(3):
        await tell(mailbox, "post", to_json(logged(1, step)))
    first = await mailbox.events(0, NEVER)
    assert await mailbox.events(0, NEVER) == first  # the answer was lost
    assert await mailbox.events(2, NEVER) == first[2:]
    assert await mailbox.events(0, NEVER) == first[2:]  # a driver that starts anew
    assert await mailbox.events(3, 0.01) == []


@on_a_loop
async def test_what_is_told_twice_under_one_number_counts_once(mailbox: Mailbox) -> None:
    for _ in range(2):
        await mailbox.tell("lane-0", "g", "s", 1, "post", to_json(logged(1)))
    assert await mailbox.tell("lane-0", "g", "s", 2, "ask", to_json(logged(1))) == Decision(action="go")
    await mailbox.interrupt("enough")
    assert await mailbox.tell("lane-0", "g", "s", 2, "ask", to_json(logged(1))) == Decision(action="go"), (
        "the same answer again"
    )
    assert (await mailbox.tell("lane-0", "g", "s", 3, "ask", to_json(logged(1)))).action == "leave"
    await mailbox.tell("lane-0", "g", "s", 1, "post", to_json(logged(1)))  # comes late
    await mailbox.tell("lane-0", "g", "another", 1, "post", to_json(logged(1)))
    assert [type(event) for event in await new_events(mailbox)].count(StepLogged) == 4


@on_a_loop
async def test_a_trial_sees_only_its_own_phases_and_its_end(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2, 3)
    group = Group(mailbox, "g")
    assignment = await group.take()
    for trial in (1, 2):
        await tell(mailbox, "post", to_json(logged(trial)))
        await tell(mailbox, "post", to_json(finished(trial)))
    await group.finish(assignment)
    ended = TrialFinished(trial=1, ending=COMPLETE, attempts=1)
    assert await trial_events(mailbox, 1) == [finished(1), ended]
    assert await trial_events(mailbox, 1, taken=2) == []
    assert await trial_events(mailbox, 3) == []


@on_a_loop
async def test_whoever_asks_for_a_trial_waits_through_the_events_of_others(mailbox: Mailbox) -> None:
    await submit(mailbox, 1, 2)
    asked = asyncio.create_task(trial_events(mailbox, 1, 0, NEVER))
    for event in (logged(1), finished(2), LaneStarted(lane="l", group="g", pids=[])):
        await tell(mailbox, "post", to_json(event))
    await settle()
    assert not asked.done()
    await tell(mailbox, "post", to_json(finished(1)))
    assert await asked == [finished(1)]


@on_a_loop
async def test_every_way_in_which_a_trial_ends_wakes_whoever_asks_for_it(mailbox: Mailbox) -> None:
    await mailbox.expect_lanes(1)
    await submit(mailbox, 1, 2, 3, 4)
    asked = [asyncio.create_task(trial_events(mailbox, trial, 0, NEVER)) for trial in (1, 2, 3, 4)]
    await Group(mailbox, "g1").take()
    await Group(mailbox, "g2").take()
    group = Group(mailbox, "g3")
    second = await group.take()  # trial 1 is out of attempts; this is trial 2
    (first,) = await asked[0]
    assert isinstance(first, TrialFinished) and (first.trial, first.ending.status) == (1, "FAILED")
    await tell(mailbox, "release", "lane-0", second.sequence, Decision(action="pause"))
    assert await asked[1] == [TrialPaused(trial=2)]
    group.finished = second.sequence
    await group.take()
    await mailbox.interrupt("enough")
    assert await asked[3] == [TrialLeft(trial=4)]
    await mailbox.lane_died("lane-0", "lost")
    (third,) = await asked[2]
    assert isinstance(third, TrialFinished) and third.trial == 3


# Silence.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def pass_time(mailbox: Mailbox, clock: Clock, seconds: int) -> list[Event]:
    """Let time pass, in which the driver looks every second; return what it hears."""
    heard = []
    for _ in range(seconds):
        clock.now += 1.0
        heard += await new_events(mailbox, 0.0)
    return heard


@on_a_loop
async def test_a_silent_lane_is_told_of_and_its_trial_and_claim_go_to_another() -> None:
    clock = Clock()
    mailbox = Mailbox(max_attempts=3, rule=Rule(), sharing=True, lane_timeout_s=60.0, clock=clock)
    for trial in (1, 2):
        await mailbox.submit(next(NUMBERS), plan_of(trial, key="shared"))
    silent, other = Group(mailbox, "g"), Group(mailbox, "h", "lane-1")
    first = await silent.take()
    claim = to_json(PhaseClaimed(trial=1, key="shared"))
    assert (await tell(mailbox, "ask", claim)).action == "go"
    await tell(mailbox, "ask", to_json(logged(1)))
    waiting = other.asking()
    await settle()
    heard = []
    for _ in range(61):
        heard += await pass_time(mailbox, clock, 1)
        await mailbox.beat("lane-1", "h")
    assert not any(isinstance(event, TrialRetried) for event in heard[:-2])
    assert [event for event in heard if isinstance(event, LaneSilent)] == [
        LaneSilent(lane="lane-0", seconds=13.0), LaneSilent(lane="lane-0", seconds=61.0, lost=True)
    ]  # fmt: skip
    taken = await waiting
    assert taken is not None and taken.trial == 1 and attempt(mailbox, 1) == 2
    assert (await mailbox.tell("lane-1", "h", "h", 1, "ask", claim)).action == "go"
    # Should the lost group go on, nothing that it says counts.
    assert (await tell(mailbox, "ask", to_json(logged(1, 20)))).action == "leave"
    await silent.finish(first)
    assert await silent.ask() is None
    assert attempt(mailbox, 1) == 2 and 1 not in await finals(mailbox)
    await other.finish(taken)
    assert (await finals(mailbox))[1].attempts == 2


@on_a_loop
async def test_a_lane_that_speaks_again_is_heard_of() -> None:
    clock = Clock()
    mailbox = Mailbox(max_attempts=3, rule=Rule(), sharing=True, lane_timeout_s=60.0, clock=clock)
    await mailbox.beat("lane-0", "g")
    assert len(await pass_time(mailbox, clock, 30)) == 1
    await mailbox.beat("lane-0", "g")
    assert await new_events(mailbox) == [LaneHeard(lane="lane-0")]


@on_a_loop
async def test_a_lane_that_loads_or_has_nothing_to_do_is_not_given_up() -> None:
    clock = Clock()
    mailbox = Mailbox(max_attempts=3, rule=Rule(), sharing=True, lane_timeout_s=60.0, clock=clock)
    await mailbox.lane_begun("lane-0")
    assert not any(isinstance(e, LaneSilent) and e.lost for e in await pass_time(mailbox, clock, 200))
    idle = Group(mailbox, "g")
    for _ in range(30):
        assert await mailbox.next_trial("lane-0", "g", -1, 0.0) == "idle"
        assert [e for e in await pass_time(mailbox, clock, 10) if isinstance(e, LaneSilent)] == []
    await submit(mailbox, 1)
    await idle.take()
    assert not any(isinstance(e, LaneSilent) and e.lost for e in await pass_time(mailbox, clock, 200))
    await mailbox.close()


@on_a_loop
async def test_a_client_that_gives_no_sign_is_named_with_its_handle() -> None:
    clock = Clock()
    mailbox = Mailbox(max_attempts=3, rule=Rule(), sharing=True, lane_timeout_s=60.0, clock=clock)
    await mailbox.submit(7, plan_of(1), None, "handle")
    for _ in range(20):
        await mailbox.client_beat(7)
        assert await pass_time(mailbox, clock, 3) == []
    assert await pass_time(mailbox, clock, 40) == [ClientSilent(ticket=7)]
    assert await mailbox.client_of(7) == "handle"
