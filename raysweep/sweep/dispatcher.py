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
    TrialEvent,
    TrialFinished,
    TrialLeft,
    TrialPaused,
    TrialResumed,
    TrialRetried,
)
from raysweep.job.plan import TrialPlan
from raysweep.sweep.attempts import Attempts
from raysweep.sweep.claims import Claims
from raysweep.sweep.lanes import Assignment, Lanes
from raysweep.sweep.stopping import EarlyStopping
from raysweep.sweep.waiting import DispatchedTrial, WaitingTrials


@dataclass(kw_only=True)
class Dispatcher:
    """The lanes of a sweep, the trials that have not ended, and what happened to them."""

    max_attempts: int
    rule: InitVar[StoppingRule]
    sharing: InitVar[bool] = True
    """False: every trial runs all of its phases itself."""
    events: list[Event] = field(default_factory=list)
    """What happened, in order. A reader may take the list away."""
    _trials: dict[int, DispatchedTrial] = field(default_factory=dict)
    """All that have not ended and are not paused."""
    _lanes: Lanes = field(default_factory=Lanes)
    _closed: bool = False
    _interrupted: str | None = None

    def __post_init__(self, rule: StoppingRule, sharing: bool) -> None:
        self._stopping = EarlyStopping(rule=rule)
        self._claims = Claims(sharing=sharing)
        self._waiting = WaitingTrials(claims=self._claims)
        self._submitted = 0

    # The sweep's side.

    def expect_lanes(self, count: int) -> None:
        """Set how many lanes serve trials that any lane may run."""
        self._lanes.expected = count

    def submit(self, plan: TrialPlan, lane: str | None = None) -> None:
        """Queue a trial: a new one, or one that was paused and may go on."""
        attempts = Attempts(checkpoint_every=plan.checkpoint_every_steps, number=self._stopping.unpause(plan.trial))
        self._submitted += 1
        trial = self._trials[plan.trial] = DispatchedTrial(
            plan=plan, phases=plan.every_phase(), lane=lane, place=self._submitted, attempts=attempts
        )
        # A trial that was proposed before the interrupt, or before the last lane died, may arrive only now. It must
        # leave or fail at once: its client waits for the event that says so.
        if self._interrupted is not None:
            self._leave(plan.trial)
        elif not self._failed_without_lane(trial):
            self.events += self._waiting.add(trial)

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
        for trial in self._waiting:
            self._leave(trial.number)

    def lane_lost(self, lane: str) -> None:
        """Take back the trial of a lane whose workers are lost. Any lane may go on with it, as its next attempt."""
        current = self._lanes.current(lane)
        self._lanes.lose(lane)
        if current is not None and self._taken_over(current, group=""):
            current.over = True
            self._withdraw(current.trial)
            self.events += self._waiting.add(self._trials[current.trial])

    def lane_died(self, lane: str, reason: str) -> None:
        """Fail the trial of a lane that Ray will not start again, and trials that no other lane can run."""
        self._lanes.died(lane, reason)
        current = self._lanes.current(lane)
        if current is not None:
            self._fail(current, TrialEnding(status="FAILED", error=reason, cluster_fault=True))
        # Those that wait: a running trial is not touched, since its own lane still works.
        for trial in self._waiting:
            self._failed_without_lane(trial)

    @property
    def waiting(self) -> int:
        """Number of trials that could not go on even if a lane were free."""
        return self._waiting.blocked

    @property
    def ready(self) -> int:
        """Number of trials that a free lane could run."""
        return len(self._waiting) - self._waiting.blocked

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
        trial = None if self._interrupted is not None else self._waiting.first_ready(lane)
        if trial is not None:
            self._waiting.discard(trial)
            return self._lanes.assign(lane, group, trial.plan)
        returns = self._closed or self._lanes.is_retired(lane) or self._interrupted is not None
        return "leave" if returns else "idle"

    def ask(self, question: Question) -> Decision:
        """Answer a worker that claims a phase, reports an evaluation or has logged a step."""
        match question:
            case PhaseClaimed():
                decision = self._claims.claim(question.trial, question.key)
                if decision == GO:
                    self.events += self._waiting.changed(question.key)
            case Reported():
                if self._stopping.is_new(question.report):
                    self.events.append(question)
                decision = self._stopping.decide(question.report)
                # The report may have completed a rung, which decides on the trials that are paused there.
                if self._stopping.ready():
                    self.settle()
            case StepLogged():
                self._note(question)
                decision = GO
            case _:
                assert_never(question)
        # A trial that its rule stops has ended: that is recorded even if the sweep is interrupted.
        if self._interrupted is not None and decision.action != "stop":
            return Decision(action="leave", reason=self._interrupted)
        return decision

    def post(self, event: Event) -> None:
        """Take in an event that needs no answer."""
        self._note(event)
        if isinstance(event, PhaseFinished):
            self._claims.finish(event.record["key"])
            self.events += self._waiting.changed(event.record["key"])
        elif isinstance(event, ControlFailed):
            # The trial goes on with its next arm: a claim that it kept would block other trials until it ends.
            self._withdraw(event.trial)

    def finish(self, lane: str, sequence: int, ending: TrialEnding) -> None:
        """End the trial of a lane's assignment; nothing happens if that assignment is over."""
        ended = self._lanes.end(lane, sequence)
        if ended is not None:
            self._end(ended.trial, ending, self._trials[ended.trial].attempts.number)

    def release(self, lane: str, sequence: int, decision: Decision) -> None:
        """Take back a lane's trial, unfinished; `decision` is `wait`, `pause` or `leave`."""
        released = self._lanes.end(lane, sequence)
        if released is None:
            return
        trial = released.trial
        if decision.action == "wait":
            self._withdraw(trial)
            self.events += self._waiting.add(self._trials[trial])
        elif decision.action == "pause":
            self._pause(trial)
        else:
            self._leave(trial)

    def crashed(self, trial: int, reason: str) -> None:
        """Keep why a worker died, for the record of a trial that has had all its attempts."""
        if trial in self._trials and self._trials[trial].attempts.crash is None:
            self._trials[trial].attempts.crash = reason

    # Inside.

    def _note(self, event: Event) -> None:
        self.events.append(event)
        # A worker that was given up for lost may still post events of a trial that is over.
        if isinstance(event, TrialEvent) and (trial := self._trials.get(event.trial)) is not None:
            trial.attempts.note(event)

    def _taken_over(self, current: Assignment, group: str) -> bool:
        """Give the trial of a lost group to the new group of its lane; fail it if that is of no use any more."""
        attempts = self._trials[current.trial].attempts
        attempts.lost()
        if attempts.fruitless >= self.max_attempts:
            self._fail(current, attempts.given_up())
            return False
        attempts.retry()
        current.group = group
        self.events.append(TrialRetried(trial=current.trial, attempt=attempts.number, fruitless=attempts.fruitless))
        return True

    def _withdraw(self, trial: int) -> None:
        for key in self._claims.withdraw(trial):
            self.events += self._waiting.changed(key)

    def _pause(self, trial: int) -> None:
        attempts = self._trials[trial].attempts.number
        self._stopping.pause(trial, attempts)
        self._leave_lane(trial, TrialPaused(trial=trial))

    def _leave(self, trial: int) -> None:
        """Leave a trial to a later session of the sweep."""
        self._leave_lane(trial, TrialLeft(trial=trial))

    def _leave_lane(self, trial: int, event: TrialPaused | TrialLeft) -> None:
        known = self._trials.pop(trial)
        self._waiting.discard(known)
        self.events.append(event)
        self._withdraw(trial)
        self.settle()

    def _fail(self, current: Assignment, ending: TrialEnding) -> None:
        current.over = True
        self._end(current.trial, ending, self._trials[current.trial].attempts.number)

    def _failed_without_lane(self, trial: DispatchedTrial) -> bool:
        """Fail a trial whose own lane is dead, or that any lane may run once every lane is; return whether it is so."""
        reason = self._lanes.why_none(trial.lane)
        if reason is not None:
            self._end(trial.number, TrialEnding(status="FAILED", error=reason, cluster_fault=True), attempts=0)
        return reason is not None

    def _end(self, trial: int, ending: TrialEnding, attempts: int) -> None:
        self._close_trial(trial, ending, attempts)
        self.settle()

    def _close_trial(self, trial: int, ending: TrialEnding, attempts: int) -> None:
        # A paused trial is not among these any more.
        known = self._trials.pop(trial, None)
        if known is not None:
            self._waiting.discard(known)
        self.events.append(TrialFinished(trial=trial, ending=ending, attempts=attempts))
        self._withdraw(trial)
        self._stopping.ended(trial)
