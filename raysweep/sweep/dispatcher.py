"""Give trials to lanes, answer their workers, and collect what happens as events.

Pure and synchronous: the mailbox actor and the simulator drive the same code, and no call ever blocks. A trial whose
next phase is being run by another trial waits for it without a lane, and its lane takes another trial. A lane's workers
form a group; when a group dies and Ray starts a new one, the new group goes on with the trial of the old one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from typing import Literal, assert_never

from raysweep.contracts import GO, Decision, Report, StoppingRule
from raysweep.contracts.events import (
    ControlFailed,
    Event,
    PhaseClaimed,
    PhaseFinished,
    Question,
    Reported,
    StepLogged,
    SweepInterrupted,
    TrialEnding,
    TrialFinished,
    TrialLeft,
    TrialPaused,
    TrialReleased,
    TrialResumed,
    TrialRetried,
    TrialWaiting,
)
from raysweep.job.plan import PhasePlan, TrialPlan
from raysweep.sweep.claims import Claims
from raysweep.sweep.lanes import Assignment, Lanes
from raysweep.sweep.stopping import EarlyStopping


@dataclass(kw_only=True)
class _DispatchedTrial:
    """A trial that has not ended."""

    plan: TrialPlan
    phases: list[PhasePlan]
    lane: str | None
    """The only lane that may run it; None: any."""
    running: bool = False
    attempt: int = 1
    crash: str | None = None
    """Why a worker died in the present attempt. Only the first reason: the death of one worker may kill others."""
    waits_for: str | None = None
    """Key of the phase of another trial that it waits for, once an event has said so."""


@dataclass(kw_only=True)
class Dispatcher:
    """The lanes of a sweep, the trials that have not ended, and what happened to them."""

    max_attempts: int
    rule: InitVar[StoppingRule]
    sharing: InitVar[bool] = True
    """False: every trial runs all of its phases itself."""
    events: list[Event] = field(default_factory=list)
    """What happened, in order. A reader may take the list away."""
    _trials: dict[int, _DispatchedTrial] = field(default_factory=dict)
    _lanes: Lanes = field(default_factory=Lanes)
    _closed: bool = False
    _interrupted: str | None = None

    def __post_init__(self, rule: StoppingRule, sharing: bool) -> None:
        self._stopping = EarlyStopping(rule=rule)
        self._claims = Claims(sharing=sharing)

    # The sweep's side.

    def expect_lanes(self, count: int) -> None:
        """Set how many lanes serve trials that any lane may run."""
        self._lanes.expected = count

    def submit(self, plan: TrialPlan, lane: str | None = None) -> None:
        """Queue a trial: a new one, or one that was paused and may go on."""
        attempt = self._stopping.unpause(plan.trial)
        self._trials[plan.trial] = _DispatchedTrial(plan=plan, phases=plan.every_phase(), lane=lane, attempt=attempt)
        # A trial that was proposed before the interrupt, or before the last lane died, may arrive only now. It must
        # leave or fail at once: its client waits for the event that says so.
        if self._interrupted is not None:
            self._leave(plan.trial)
        self._fail_trials_without_lane()
        self._announce_waiting()

    def replay(self, reports: Iterable[Report], ended: Iterable[int]) -> set[int]:
        """Bring the stopping rule to the state in which earlier sessions left it; see `EarlyStopping.replay`."""
        return self._stopping.replay(reports, ended)

    def never_run(self, trials: Iterable[int]) -> None:
        """Let the stopping rule know of planned trials that will never run, so that it does not wait for them."""
        for trial in trials:
            self._stopping.ended(trial)
        self.settle()

    def settle(self) -> None:
        """Carry out the stopping rule's decisions on paused trials that have left their lanes."""
        # A loop: a trial that ends here may be the last one that the rule needed to decide on others.
        while ready := self._stopping.ready():
            for trial in ready:
                decision = self._stopping.take_decision(trial)
                if decision.action == "go":
                    self.events.append(TrialResumed(trial=trial))
                else:
                    ending = TrialEnding(status="STOPPED", stopped=decision.reason)
                    self._close_trial(trial, ending, self._stopping.unpause(trial))
        self._announce_waiting()

    def close(self) -> None:
        """Let every worker return once no trial waits for a lane."""
        self._closed = True

    def retire(self, lane: str) -> None:
        """Let the workers of one lane return."""
        self._lanes.retire(lane)

    def interrupt(self, reason: str) -> None:
        """Let every trial leave its lane at its next step or phase, with a checkpoint; the workers then return."""
        if self._interrupted is not None:
            return
        self._interrupted = reason
        self.events.append(SweepInterrupted(reason=reason))
        # Trials on lanes hear of it in the answer to their next question; the others are on no lane that could ask.
        for trial in [number for number, waiting in self._trials.items() if not waiting.running]:
            self._leave(trial)

    def lane_died(self, lane: str, reason: str) -> None:
        """Fail the trial of a lane that Ray will not start again, and trials that no other lane can run."""
        self._lanes.died(lane, reason)
        current = self._lanes.current(lane)
        if current is not None:
            self._fail(current, reason)
        self._fail_trials_without_lane()
        self._announce_waiting()

    @property
    def waiting(self) -> int:
        """Number of trials that could not go on even if a lane were free."""
        return sum(not trial.running and self._blocker(trial) is not None for trial in self._trials.values())

    # The lanes' side.

    def assignment(self, lane: str, group: str, finished: int) -> Assignment | Literal["idle", "leave"]:
        """Return the trial that a worker of a lane runs next, `idle` if there is none yet, or `leave` for good.

        Args:
            group: the worker's group. A new group takes over the lane's unfinished trial, as its next attempt.
            finished: sequence number of the last assignment that this worker is through with, -1 at first.
        """
        # Ray does not cancel a call when its caller dies, so a worker of a replaced group may still be asking here.
        if self._lanes.is_replaced(lane, group):
            return "leave"
        current = self._lanes.current(lane)
        if current is not None:
            if current.group != group and not self._taken_over(current, group):
                # The trial was out of attempts and has failed, so the lane is free: ask again.
                return self.assignment(lane, group, finished)
            # Ranks finish a trial one after the other. A rank that is through waits until rank 0 has said so, too.
            return current if current.sequence > finished else "idle"
        trial = None if self._interrupted is not None else self._first_runnable(lane)
        if trial is not None:
            trial.running = True
            return self._lanes.assign(lane, group, trial.plan)
        returns = self._closed or self._lanes.is_retired(lane) or self._interrupted is not None
        return "leave" if returns else "idle"

    def ask(self, question: Question) -> Decision:
        """Answer a worker that claims a phase, reports an evaluation or has logged a step."""
        match question:
            case PhaseClaimed():
                decision = self._claims.claim(question.trial, question.key)
            case Reported():
                if self._stopping.is_new(question.report):
                    self.events.append(question)
                decision = self._stopping.decide(question.report)
                # The report may have completed a rung, which decides on the trials that are paused there.
                if self._stopping.ready():
                    self.settle()
            case StepLogged():
                self.events.append(question)
                decision = GO
            case _:
                assert_never(question)
        # A trial that its rule stops has ended: that is recorded even if the sweep is interrupted.
        if self._interrupted is not None and decision.action != "stop":
            return Decision(action="leave", reason=self._interrupted)
        return decision

    def post(self, event: Event) -> None:
        """Take in an event that needs no answer."""
        self.events.append(event)
        if isinstance(event, PhaseFinished):
            self._claims.finish(event.record["key"])
            self._announce_waiting()
        elif isinstance(event, ControlFailed):
            # The trial goes on with its next arm: a claim that it kept would block other trials until it ends.
            self._claims.withdraw(event.trial)
            self._announce_waiting()

    def finish(self, lane: str, sequence: int, ending: TrialEnding) -> None:
        """End the trial of a lane's assignment; nothing happens if that assignment is over."""
        ended = self._lanes.end(lane, sequence)
        if ended is not None:
            self._end(ended.trial, ending, self._trials[ended.trial].attempt)

    def release(self, lane: str, sequence: int, decision: Decision) -> None:
        """Take back a lane's trial, unfinished; `decision` is `wait`, `pause` or `leave`."""
        released = self._lanes.end(lane, sequence)
        if released is None:
            return
        trial = released.trial
        if decision.action == "wait":
            self._trials[trial].running = False
            self._claims.withdraw(trial)
            self._announce_waiting()
        elif decision.action == "pause":
            self._pause(trial)
        else:
            self._leave(trial)

    def crashed(self, trial: int, reason: str) -> None:
        """Keep why a worker died, for the record of a trial that has had all its attempts."""
        if trial in self._trials and self._trials[trial].crash is None:
            self._trials[trial].crash = reason

    # Inside.

    def _taken_over(self, current: Assignment, group: str) -> bool:
        """Give the trial of a lost group to the new group of its lane; fail it if it has had all its attempts."""
        trial = self._trials[current.trial]
        if trial.attempt >= self.max_attempts:
            reason = trial.crash or "its worker group was lost (killed, or the node went away)"
            self._fail(current, f"gave up after {trial.attempt} attempts: {reason}")
            return False
        trial.attempt += 1
        trial.crash = None
        current.group = group
        self.events.append(TrialRetried(trial=current.trial, attempt=trial.attempt))
        return True

    def _first_runnable(self, lane: str) -> _DispatchedTrial | None:
        # A dict keeps the order of insertion: trials are given out in the order in which they were submitted.
        free = (trial for trial in self._trials.values() if not trial.running and trial.lane in (None, lane))
        return next((trial for trial in free if self._blocker(trial) is None), None)

    def _blocker(self, trial: _DispatchedTrial) -> PhasePlan | None:
        """Return the phase that a trial needs next, if another trial is running it."""
        return self._claims.blocker(trial.plan.trial, trial.phases)

    def _announce_waiting(self) -> None:
        """Add an event for each trial that begins to wait for another trial's phase, or waits no more."""
        for number, trial in self._trials.items():
            blocker = None if trial.running else self._blocker(trial)
            key = blocker.key if blocker else None
            if key != trial.waits_for:
                trial.waits_for = key
                waits = blocker and TrialWaiting(trial=number, phase=blocker.kind, cycle=blocker.cycle)
                self.events.append(waits or TrialReleased(trial=number))

    def _pause(self, trial: int) -> None:
        self._stopping.pause(trial, self._trials.pop(trial).attempt)
        self._claims.withdraw(trial)
        self.events.append(TrialPaused(trial=trial))
        self.settle()

    def _leave(self, trial: int) -> None:
        """Leave a trial to a later session of the sweep."""
        del self._trials[trial]
        self._claims.withdraw(trial)
        self.events.append(TrialLeft(trial=trial))
        self.settle()

    def _fail(self, current: Assignment, reason: str) -> None:
        current.over = True
        self._end(current.trial, TrialEnding(status="FAILED", error=reason), self._trials[current.trial].attempt)

    def _fail_trials_without_lane(self) -> None:
        """Fail each trial whose own lane is dead, and all that any lane may run once every lane is."""
        # A copy, since trials leave the dict on the way. A running trial is not touched: its own lane still works.
        for number, trial in list(self._trials.items()):
            reason = None if trial.running else self._lanes.why_none(trial.lane)
            if reason is not None:
                self._end(number, TrialEnding(status="FAILED", error=reason), attempts=0)

    def _end(self, trial: int, ending: TrialEnding, attempts: int) -> None:
        self._close_trial(trial, ending, attempts)
        self.settle()

    def _close_trial(self, trial: int, ending: TrialEnding, attempts: int) -> None:
        # A paused trial is not among these any more.
        self._trials.pop(trial, None)
        self._claims.withdraw(trial)
        self.events.append(TrialFinished(trial=trial, ending=ending, attempts=attempts))
        self._stopping.ended(trial)
