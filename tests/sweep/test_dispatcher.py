"""The stage tree, pauses and interrupts: who runs what, who waits for whom, and that nothing waits for ever."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from raysweep.contracts import GO, Decision, Report
from raysweep.contracts.events import (
    ControlFailed,
    PhaseClaimed,
    PhaseFinished,
    Reported,
    StepLogged,
    TrialEnding,
    TrialEvent,
    TrialFinished,
    TrialLeft,
    TrialPaused,
    TrialReleased,
    TrialResumed,
    TrialWaiting,
)
from raysweep.job.plan import PhasePlan, TrialPlan
from raysweep.strategies.schedulers.none import Rule
from raysweep.sweep.dispatcher import Dispatcher
from raysweep.sweep.lanes import Assignment

COMPLETE = TrialEnding(status="COMPLETE")
KINDS = ("baseline", "prune", "measure", "grow", "learn")


def plan_of(trial: int, keys: Sequence[str], controls: Sequence[str] = ()) -> TrialPlan:
    def phases(some: Sequence[str]) -> tuple[PhasePlan, ...]:
        return tuple(PhasePlan(kind=KINDS[at % 5], cycle=at, params={}, key=key) for at, key in enumerate(some))

    empty: dict[str, Any] = {"values": {}, "model": {}, "data": {}, "training": {}, "halting": {}}
    arms = {"dense": phases(controls)} if controls else {}
    return TrialPlan(trial=trial, seed=0, checkpoint_every_steps=1, phases=phases(keys), controls=arms, **empty)


class Planted(Rule):
    """Answers what is planted for a trial's report, and decides what is put into `later`."""

    def __init__(self, answers: dict[tuple[int, int], Decision]) -> None:
        self.answers, self.later = answers, dict[int, Decision]()
        self.told: list[tuple[int, int]] = []
        self.over: list[int] = []

    def report(self, report: Report) -> Decision:
        self.told.append((report.trial, report.step))
        return self.answers.get((report.trial, report.step), GO)

    def ended(self, trial: int) -> None:
        self.over.append(trial)

    def decided(self) -> dict[int, Decision]:
        decided, self.later = self.later, {}
        return decided


def report_of(trial: int, step: int) -> Report:
    return Report(trial=trial, phase="learn", cycle=1, step=step, flops=1.0, share=0.1 * step, loss=2.0)


def reported(trial: int, step: int) -> Reported:
    return Reported(trial=trial, report=report_of(trial, step))


class Worker:
    """A lane of one rank, phase by phase."""

    def __init__(self, dispatcher: Dispatcher, lane: str, group: str = "g") -> None:
        self.dispatcher, self.lane, self.group = dispatcher, lane, group
        self.finished = -1
        self.assignment: Assignment | None = None

    def take(self) -> int | str:
        found = self.dispatcher.assignment(self.lane, self.group, self.finished)
        if isinstance(found, str):
            return found
        self.assignment = found
        return found.trial

    @property
    def trial(self) -> int:
        assert self.assignment is not None
        return self.assignment.trial

    def claim(self, key: str) -> str:
        return self.dispatcher.ask(PhaseClaimed(trial=self.trial, key=key)).action

    def run(self, key: str) -> None:
        """Run a phase that nobody else is running."""
        assert self.claim(key) == "go"
        self.dispatcher.post(PhaseFinished(trial=self.trial, record={"key": key}))

    def hand_back(self, action: Any) -> None:
        assert self.assignment is not None
        self.dispatcher.release(self.lane, self.assignment.sequence, Decision(action=action))
        self.finished = self.assignment.sequence

    def finish(self) -> None:
        assert self.assignment is not None
        self.dispatcher.finish(self.lane, self.assignment.sequence, COMPLETE)
        self.finished = self.assignment.sequence


def dispatcher_of(rule: Rule | None = None, **settings: Any) -> Dispatcher:
    return Dispatcher(max_attempts=2, rule=rule or Rule(), **settings)


def kinds(dispatcher: Dispatcher, *wanted: type[TrialEvent]) -> list[tuple[type[TrialEvent], int]]:
    return [(type(event), event.trial) for event in dispatcher.events if isinstance(event, wanted)]


# The stage tree.


def test_who_needs_a_phase_first_runs_it_and_the_others_wait_without_a_lane() -> None:
    dispatcher = dispatcher_of()
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    dispatcher.submit(plan_of(1, ["base", "one"]))
    assert first.take() == 1 and first.claim("base") == "go"
    dispatcher.submit(plan_of(2, ["base", "two"]))
    dispatcher.submit(plan_of(3, ["other"]))
    assert dispatcher.waiting == 1
    assert second.take() == 3  # not 2, which could only wait
    first.run("base")
    assert dispatcher.waiting == 0
    assert kinds(dispatcher, TrialWaiting, TrialReleased) == [(TrialWaiting, 2), (TrialReleased, 2)]
    second.run("other")
    second.finish()
    assert second.take() == 2
    second.run("two")


def test_a_trial_that_meets_a_claimed_phase_gives_up_its_lane_and_comes_back() -> None:
    dispatcher = dispatcher_of()
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    dispatcher.submit(plan_of(1, ["base", "shared", "one"]))
    dispatcher.submit(plan_of(2, ["elsewhere", "shared", "two"]))
    assert (first.take(), second.take()) == (1, 2)
    first.run("base")
    assert first.claim("shared") == "go"
    second.run("elsewhere")
    assert second.claim("shared") == "wait"
    second.hand_back("wait")
    dispatcher.submit(plan_of(3, ["third"]))
    assert second.take() == 3
    second.run("third")
    second.finish()
    assert second.take() == "idle"  # trial 2 still waits
    first.run("shared")
    assert second.take() == 2
    assert second.claim("shared") == "go"  # it finds it in the store
    assert second.claim("two") == "go"


def test_whoever_runs_a_phase_and_fails_leaves_it_to_the_next() -> None:
    dispatcher = dispatcher_of()
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    dispatcher.submit(plan_of(1, ["base"]))
    dispatcher.submit(plan_of(2, ["base"]))
    assert first.take() == 1 and first.claim("base") == "go"
    assert second.take() == "idle"
    first.finish()  # without a record of the phase
    assert second.take() == 2 and second.claim("base") == "go"


def test_a_claim_outlives_the_worker_group_that_made_it() -> None:
    dispatcher = dispatcher_of()
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    dispatcher.submit(plan_of(1, ["base"]))
    dispatcher.submit(plan_of(2, ["base"]))
    assert first.take() == 1 and first.claim("base") == "go"
    rebuilt = Worker(dispatcher, "a", "g2")
    assert rebuilt.take() == 1
    assert second.take() == "idle"
    assert rebuilt.claim("base") == "go"
    assert Worker(dispatcher, "a", "g3").take() == 2  # trial 1 is out of attempts, and its claim with it


def test_an_arm_that_fails_holds_no_phase() -> None:
    dispatcher = dispatcher_of()
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    dispatcher.submit(plan_of(1, ["one"], controls=["dense"]))
    dispatcher.submit(plan_of(2, ["two"], controls=["dense"]))
    assert first.take() == 1 and second.take() == 2
    first.run("one")
    second.run("two")
    assert first.claim("dense") == "go"
    assert second.claim("dense") == "wait"
    second.hand_back("wait")
    dispatcher.post(ControlFailed(trial=1, arm="dense", error="no"))
    assert second.take() == 2 and second.claim("dense") == "go"


def test_without_sharing_nobody_waits() -> None:
    dispatcher = dispatcher_of(sharing=False)
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    dispatcher.submit(plan_of(1, ["base"]))
    dispatcher.submit(plan_of(2, ["base"]))
    assert (first.take(), second.take()) == (1, 2)
    assert (first.claim("base"), second.claim("base"), dispatcher.waiting) == ("go", "go", 0)


# Stopping rules.


def test_a_report_is_answered_at_once_and_told_once() -> None:
    rule = Planted({(1, 4): Decision(action="stop", reason="worse")})
    dispatcher = dispatcher_of(rule)
    worker = Worker(dispatcher, "a")
    dispatcher.submit(plan_of(1, ["base"]))
    worker.take()
    assert dispatcher.ask(reported(1, 2)) == GO
    assert dispatcher.ask(reported(1, 4)).reason == "worse"
    assert dispatcher.ask(reported(1, 4)).action == "stop"  # a second attempt gets there again
    assert rule.told == [(1, 2), (1, 4)]
    assert kinds(dispatcher, Reported) == [(Reported, 1), (Reported, 1)]


def test_a_paused_trial_is_on_no_lane_until_its_rule_decides() -> None:
    rule = Planted({(1, 2): Decision(action="pause"), (2, 2): Decision(action="pause")})
    dispatcher = dispatcher_of(rule)
    worker = Worker(dispatcher, "a")
    for trial in (1, 2):
        dispatcher.submit(plan_of(trial, [f"own-{trial}"]))
        assert worker.take() == trial
        assert dispatcher.ask(reported(trial, 2)).action == "pause"
        if trial == 2:
            rule.later = {1: GO, 2: Decision(action="stop", reason="not among the best")}
        worker.hand_back("pause")
    assert kinds(dispatcher, TrialPaused, TrialResumed, TrialFinished) == [
        (TrialPaused, 1), (TrialPaused, 2), (TrialResumed, 1), (TrialFinished, 2),
    ]  # fmt: skip
    final = dispatcher.events[-1]
    assert isinstance(final, TrialFinished)
    assert (final.ending.status, final.ending.stopped, final.attempts) == ("STOPPED", "not among the best", 1)
    assert worker.take() == "idle"
    dispatcher.submit(plan_of(1, ["own-1"]))
    assert worker.take() == 1
    assert dispatcher.ask(reported(1, 3)) == GO


def test_what_is_decided_while_a_trial_is_still_leaving_its_lane_waits_for_that() -> None:
    rule = Planted({(trial, 2): Decision(action="pause") for trial in (1, 2)})
    dispatcher = dispatcher_of(rule)
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    for trial, worker in ((1, first), (2, second)):
        dispatcher.submit(plan_of(trial, [f"own-{trial}"]))
        worker.take()
        assert dispatcher.ask(reported(trial, 2)).action == "pause"
    rule.later = {1: GO, 2: Decision(action="stop", reason="not among the best")}
    dispatcher.settle()
    assert kinds(dispatcher, TrialPaused, TrialResumed, TrialFinished) == []
    second.hand_back("pause")
    first.hand_back("pause")
    assert kinds(dispatcher, TrialPaused, TrialResumed, TrialFinished) == [
        (TrialPaused, 2), (TrialFinished, 2), (TrialPaused, 1), (TrialResumed, 1),
    ]  # fmt: skip


def test_a_report_that_settles_a_rung_is_followed_at_once_by_those_who_waited_for_it() -> None:
    rule = Planted({(1, 2): Decision(action="pause")})
    dispatcher = dispatcher_of(rule)
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    for trial, worker in ((1, first), (2, second)):
        dispatcher.submit(plan_of(trial, [f"own-{trial}"]))
        worker.take()
    dispatcher.ask(reported(1, 2))
    first.hand_back("pause")
    rule.later = {1: GO}
    assert dispatcher.ask(reported(2, 2)) == GO
    assert kinds(dispatcher, TrialResumed) == [(TrialResumed, 1)]


def test_a_resumed_trial_that_repeats_the_report_at_which_it_paused_is_not_paused_again() -> None:
    rule = Planted({(1, 2): Decision(action="pause")})
    dispatcher = dispatcher_of(rule)
    worker = Worker(dispatcher, "a")
    dispatcher.submit(plan_of(1, ["own"]))
    worker.take()
    dispatcher.ask(reported(1, 2))
    rule.later, rule.answers = {1: GO}, {}
    worker.hand_back("pause")
    dispatcher.submit(plan_of(1, ["own"]))
    worker.take()
    assert dispatcher.ask(reported(1, 2)) == GO
    assert len(kinds(dispatcher, Reported)) == 1


def test_attempts_before_a_pause_count() -> None:
    rule = Planted({(1, 2): Decision(action="pause")})
    dispatcher = dispatcher_of(rule)
    dispatcher.submit(plan_of(1, ["own"]))
    Worker(dispatcher, "a", "first").take()
    worker = Worker(dispatcher, "a", "second")
    worker.take()
    dispatcher.ask(reported(1, 2))
    rule.later = {1: Decision(action="stop", reason="not among the best")}
    worker.hand_back("pause")
    final = dispatcher.events[-1]
    assert isinstance(final, TrialFinished) and final.attempts == 2


def test_an_earlier_session_is_replayed_without_an_event() -> None:
    rule = Planted({(1, 2): Decision(action="pause"), (2, 2): Decision(action="pause"), (3, 1): GO})
    dispatcher = dispatcher_of(rule)
    told = [report_of(1, 1), report_of(3, 1), report_of(2, 2), report_of(1, 2)]
    assert dispatcher.replay(told, ended=[2, 4]) == {1}
    assert (rule.told, rule.over) == ([(1, 1), (3, 1), (2, 2), (1, 2)], [2, 4])
    assert dispatcher.events == []
    assert dispatcher.ask(reported(3, 1)) == GO  # its last attempt had come that far
    assert rule.told.count((3, 1)) == 1


# Interrupts.


def test_an_interrupt_reaches_whoever_asks_next_and_lets_all_lanes_return() -> None:
    dispatcher = dispatcher_of()
    first, second = Worker(dispatcher, "a"), Worker(dispatcher, "b")
    dispatcher.submit(plan_of(1, ["base", "one"]))
    first.take()
    first.claim("base")
    dispatcher.submit(plan_of(2, ["base"]))
    dispatcher.interrupt("the budget of 2 hours is used up")
    assert kinds(dispatcher, TrialLeft) == [(TrialLeft, 2)]
    logged = StepLogged(trial=1, arm="main", phase="baseline", cycle=0, steps=20, point={"step": 10.0})
    assert dispatcher.ask(logged).action == "leave"
    first.hand_back("leave")
    assert kinds(dispatcher, TrialLeft, TrialFinished) == [(TrialLeft, 2), (TrialLeft, 1)]
    assert (first.take(), second.take()) == ("leave", "leave")
    dispatcher.submit(plan_of(3, ["late"]))
    assert kinds(dispatcher, TrialLeft)[-1] == (TrialLeft, 3)


def test_who_is_done_when_the_interrupt_comes_is_done() -> None:
    dispatcher = dispatcher_of()
    worker = Worker(dispatcher, "a")
    dispatcher.submit(plan_of(1, ["base"]))
    worker.take()
    dispatcher.interrupt("stop")
    worker.finish()
    assert kinds(dispatcher, TrialLeft, TrialFinished) == [(TrialFinished, 1)]


# Everything at once.


@pytest.mark.parametrize("seed", range(20))
def test_each_phase_runs_once_and_each_trial_ends_once_whatever_the_order(seed: int) -> None:
    chance = random.Random(seed)
    names = [[f"base-{chance.randrange(2)}"] for _ in range(30)]
    for keys in names:
        for depth in range(3):
            keys.append(f"{keys[-1]}/{depth}{chance.randrange(2)}")
    dispatcher = dispatcher_of()
    for trial, keys in enumerate(names):
        dispatcher.submit(plan_of(trial, keys))
    ran: list[str] = []
    store: set[str] = set()
    workers = [drive(Worker(dispatcher, f"lane-{lane}"), names, store, ran) for lane in range(4)]
    for _ in range(10_000):
        next(chance.choice(workers))
        if len(kinds(dispatcher, TrialFinished)) == len(names):
            break
    assert sorted(trial for _, trial in kinds(dispatcher, TrialFinished)) == list(range(30))
    assert sorted(ran) == sorted({key for keys in names for key in keys})


def drive(worker: Worker, names: Sequence[Sequence[str]], store: set[str], ran: list[str]) -> Iterator[None]:
    """Work as a lane does, yielding wherever another lane may come in between."""
    while True:
        if isinstance(worker.take(), str):
            yield
            continue
        for key in names[worker.trial]:
            yield
            if key not in store:
                if worker.claim(key) == "wait":
                    worker.hand_back("wait")
                    break
                yield
                ran.append(key)
                store.add(key)
                yield
            worker.dispatcher.post(PhaseFinished(trial=worker.trial, record={"key": key}))
        else:
            worker.finish()


def test_a_trial_that_gets_on_is_tried_again_however_often_its_workers_are_lost() -> None:
    """With two attempts without progress allowed."""
    dispatcher = dispatcher_of()
    dispatcher.submit(plan_of(1, [f"key-{at}" for at in range(9)]))
    for life in range(6):
        worker = Worker(dispatcher, "a", f"g{life}")
        assert worker.take() == 1
        worker.run(f"key-{life}")
    assert Worker(dispatcher, "a", "poisoned").take() == 1
    assert Worker(dispatcher, "a", "again").take() == 1
    assert Worker(dispatcher, "a", "once more").take() == "idle"
    final = dispatcher.events[-1]
    assert isinstance(final, TrialFinished)
    assert (final.ending.status, final.ending.cluster_fault, final.attempts) == ("FAILED", True, 8)


def test_what_an_event_costs_depends_neither_on_trials_nor_on_idle_lanes() -> None:
    """Counted in lines of code, of the same few events beside 10 and beside 1,000 trials that wait."""

    def lines(others: int) -> int:
        dispatcher = dispatcher_of()
        dispatcher.submit(plan_of(0, ["base", "own"]))
        first = Worker(dispatcher, "a")
        assert first.take() == 0 and first.claim("base") == "go"
        for trial in range(1, others):
            dispatcher.submit(plan_of(trial, ["base", f"own-{trial}"]))
            Worker(dispatcher, f"lane-{trial}").take()
        dispatcher.submit(plan_of(others, ["alone"]))
        second = Worker(dispatcher, "b")
        ran = Counter[str]()

        def count(frame: Any, event: str, argument: Any) -> Any:
            ran["lines"] += event == "line"
            return count

        sys.settrace(count)
        try:
            assert second.take() == others
            second.run("alone")
            assert dispatcher.ask(reported(others, 1)) == GO and dispatcher.waiting == others - 1
            second.finish()
            assert second.take() == "idle"
        finally:
            sys.settrace(None)
        return ran["lines"]

    assert lines(1000) <= lines(10) + 10
