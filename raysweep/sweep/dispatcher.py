"""Who runs what: trials in, assignments to lanes and events out. Pure and synchronous: it is simulated as it is.

Phases form a tree by their keys. A lane claims each phase that nobody has run; a trial whose next phase is claimed by
another trial waits for it without a lane, and its lane takes what can go on. Lanes are worker groups: one that died and
was rebuilt is given the trial that it was working on. Every answer to a worker is given at once: nothing blocks here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep.contracts import GO, Decision, Report, StoppingRule
from raysweep.job.plan import PhasePlan, TrialPlan

Event = dict[str, Any]
LEAVE: Literal["leave"] = "leave"
IDLE: Literal["idle"] = "idle"
ENDINGS = ("final", "paused", "left")
"""Events that say that a trial is on no lane any more, and waits for none."""


@dataclass(kw_only=True)
class Assignment:
    """A trial on a lane."""

    sequence: int
    """Grows by one with every assignment of the lane."""
    trial: int
    plan: str
    """TrialPlan as JSON."""
    group: str
    """The worker group that took it, or took it over."""
    over: bool = False
    """The trial has ended, or has been handed back."""


@dataclass(kw_only=True)
class _Trial:
    """A trial that has not ended."""

    plan: TrialPlan
    phases: list[PhasePlan]
    lane: str | None
    """The only lane that may take it; None: any."""
    running: bool = False
    attempt: int = 1
    crash: str | None = None
    """Why a worker died in the present attempt; the first one may take others along."""
    parked: str | None = None
    """Key of the phase of another trial that it waits for, once that has been told."""


@dataclass(kw_only=True)
class Dispatcher:
    """All that a sweep knows of its lanes and of the trials that they run."""

    max_attempts: int
    rule: StoppingRule
    sharing: bool = True
    """False: every trial runs all of its phases itself."""
    events: list[Event] = field(default_factory=list)
    """What happened, in order; whoever reads it may take it away."""
    _trials: dict[int, _Trial] = field(default_factory=dict)
    _lanes: dict[str, Assignment] = field(default_factory=dict)
    _groups: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Of each lane, the newest last."""
    _num_lanes: int = 0
    _dead_lanes: dict[str, str] = field(default_factory=dict)
    _retired: set[str] = field(default_factory=set)
    _closed: bool = False
    _interrupted: str | None = None
    _done: set[str] = field(default_factory=set)
    _claims: dict[str, int] = field(default_factory=dict)
    """Key of a phase that is being run -> the trial that runs it."""
    _decided: dict[tuple[int, int, str, int], Decision] = field(default_factory=dict)
    """What each report was answered: an attempt that repeats it is told the same, unless that was to pause."""
    _paused: dict[int, int] = field(default_factory=dict)
    """Trials that wait for the stopping rule, or to be submitted once more -> their attempts so far."""
    _verdicts: dict[int, Decision] = field(default_factory=dict)
    """What the rule has decided on trials that were told to pause, and are still on their way off their lanes."""

    # The sweep's side.

    def expect_lanes(self, count: int) -> None:
        """Say how many lanes serve trials that any lane may take."""
        self._num_lanes = count

    def submit(self, plan: TrialPlan, lane: str | None = None) -> None:
        """Take in a trial, or one that was paused once more."""
        attempt = self._paused.pop(plan.trial, 1)
        self._trials[plan.trial] = _Trial(plan=plan, phases=plan.every_phase(), lane=lane, attempt=attempt)
        if self._interrupted is not None:
            self._hand_back(plan.trial, "left")
        self._fail_what_nobody_can_take()
        self._tell_who_waits()

    def replay(self, reports: Iterable[Report], ended: Iterable[int]) -> set[int]:
        """Tell the stopping rule of earlier sessions; return the trials that they left paused.

        Args:
            reports: of all trials, in the order in which they were told.
        """
        answers = {report.trial: self._decide(report) for report in reports}
        for trial in ended:
            answers.pop(trial, None)
            self.rule.ended(trial)
        paused = {trial for trial, answer in answers.items() if answer.action == "pause"}
        self._paused = dict.fromkeys(sorted(paused), 1)
        return paused

    def never_run(self, trials: Iterable[int]) -> None:
        """Take note that the stopping rule need not wait for some trials."""
        for trial in trials:
            self.rule.ended(trial)
        self.settle()

    def settle(self) -> None:
        """Carry out what the stopping rule has decided on paused trials, as soon as they have left their lanes."""
        while ready := self._ready():
            for trial in ready:
                decision = self._verdicts.pop(trial)
                if decision.action == "go":
                    self.events.append({"type": "resumed_by_rule", "trial": trial})
                else:
                    ending = {"status": "STOPPED", "stopped": decision.reason, "error": None}
                    self._close_trial(trial, ending, self._paused.pop(trial))
        self._tell_who_waits()

    def close(self) -> None:
        """Let every worker return once no trial waits for it."""
        self._closed = True

    def retire(self, lane: str) -> None:
        """Let the workers of one lane return."""
        self._retired.add(lane)

    def interrupt(self, reason: str) -> None:
        """Let every trial leave its lane at its next step or phase, with a checkpoint; the workers then return."""
        if self._interrupted is not None:
            return
        self._interrupted = reason
        self.events.append({"type": "interrupted", "reason": reason})
        for trial in [number for number, waiting in self._trials.items() if not waiting.running]:
            self._hand_back(trial, "left")

    def lane_died(self, lane: str, reason: str) -> None:
        """Take note that a lane is gone for good: its trial fails, and what no lane is left for."""
        self._dead_lanes[lane] = reason
        current = self._lanes.get(lane)
        if current is not None and not current.over:
            self._fail(current, reason)
        self._fail_what_nobody_can_take()
        self._tell_who_waits()

    @property
    def waiting(self) -> int:
        """Trials that could not go on even if a lane were free."""
        return sum(not trial.running and self._blocker(trial) is not None for trial in self._trials.values())

    # The lanes' side.

    def assignment(self, lane: str, group: str, finished: int) -> Assignment | Literal["idle", "leave"]:
        """Return what a worker of a lane shall do now: a trial, nothing yet, or return for good.

        Args:
            group: the worker group asking; a new one takes over an unfinished trial, as its next attempt.
            finished: sequence number of the last assignment that this worker is through with, -1 at first.
        """
        groups = self._groups[lane]
        if group not in groups:
            groups.append(group)
        if group != groups[-1]:
            return LEAVE
        current = self._lanes.get(lane)
        if current is not None and not current.over:
            if current.group != group and not self._taken_over(current, group):
                return self.assignment(lane, group, finished)
            return current if current.sequence > finished else IDLE
        trial = None if self._interrupted is not None else self._first_runnable(lane)
        if trial is not None:
            return self._assign(trial, lane, group)
        return LEAVE if self._closed or lane in self._retired or self._interrupted is not None else IDLE

    def ask(self, event: Event) -> Decision:
        """Answer a worker: its `claim` of a phase, the `report` of an evaluation, or mere `progress`."""
        if event["type"] == "claim":
            decision = self._claim(event["trial"], event["key"])
        elif event["type"] == "report":
            report = Report(**event["report"])
            if (report.trial, report.cycle, report.phase, report.step) not in self._decided:
                self.events.append(event)
            decision = self._decide(report)
            if self._ready():
                self.settle()
        else:
            self.events.append(event)
            decision = GO
        if self._interrupted is not None and decision.action != "stop":
            return Decision(action="leave", reason=self._interrupted)
        return decision

    def post(self, event: Event) -> None:
        """Take in what asks for no answer; a phase's record says that its outcome is in the store."""
        self.events.append(event)
        if event["type"] == "phase":
            key = event["record"]["key"]
            self._done.add(key)
            self._claims.pop(key, None)
            self._tell_who_waits()
        elif event["type"] == "control_failed":
            self._unclaim(event["trial"])
            self._tell_who_waits()

    def finish(self, lane: str, sequence: int, ending: Event) -> None:
        """End a lane's current trial."""
        current = self._lanes[lane]
        if current.sequence == sequence and not current.over:
            current.over = True
            self._end(current.trial, ending, self._trials[current.trial].attempt)

    def release(self, lane: str, sequence: int, decision: Decision) -> None:
        """Take back a lane's current trial, unfinished: it waits, is paused, or is left for another session."""
        current = self._lanes[lane]
        if current.sequence != sequence or current.over:
            return
        current.over = True
        if decision.action == "wait":
            self._trials[current.trial].running = False
            self._unclaim(current.trial)
            self._tell_who_waits()
        else:
            self._hand_back(current.trial, "paused" if decision.action == "pause" else "left")

    def crashed(self, trial: int, reason: str) -> None:
        """Keep why a worker died, in case this is the trial's last attempt."""
        if trial in self._trials and self._trials[trial].crash is None:
            self._trials[trial].crash = reason

    # Inside.

    def _assign(self, number: int, lane: str, group: str) -> Assignment:
        trial, before = self._trials[number], self._lanes.get(lane)
        trial.running = True
        sequence = 0 if before is None else before.sequence + 1
        self._lanes[lane] = Assignment(sequence=sequence, trial=number, plan=trial.plan.to_json(), group=group)
        return self._lanes[lane]

    def _taken_over(self, current: Assignment, group: str) -> bool:
        """Give a trial to the group that takes its lane's lost one's place, unless it has had all its attempts."""
        trial = self._trials[current.trial]
        if trial.attempt >= self.max_attempts:
            reason = trial.crash or "its worker group was lost (killed, or the node went away)"
            self._fail(current, f"gave up after {trial.attempt} attempts: {reason}")
            return False
        trial.attempt += 1
        trial.crash = None
        current.group = group
        self.events.append({"type": "retry", "trial": current.trial, "attempt": trial.attempt})
        return True

    def _first_runnable(self, lane: str) -> int | None:
        for number, trial in self._trials.items():
            if not trial.running and trial.lane in (None, lane) and self._blocker(trial) is None:
                return number
        return None

    def _next_phase(self, trial: _Trial) -> PhasePlan | None:
        return next((phase for phase in trial.phases if phase.key not in self._done), None)

    def _blocker(self, trial: _Trial) -> PhasePlan | None:
        """Return the phase that a trial needs next, where another trial is running it."""
        phase = self._next_phase(trial) if self.sharing else None
        if phase is None or self._claims.get(phase.key, trial.plan.trial) == trial.plan.trial:
            return None
        return phase

    def _claim(self, trial: int, key: str) -> Decision:
        if not self.sharing or key in self._done:
            return GO
        holder = self._claims.setdefault(key, trial)
        return GO if holder == trial else Decision(action="wait", reason=f"trial {holder} is running this phase")

    def _unclaim(self, trial: int) -> None:
        self._claims = {key: holder for key, holder in self._claims.items() if holder != trial}

    def _decide(self, report: Report) -> Decision:
        told = (report.trial, report.cycle, report.phase, report.step)
        known = self._decided.get(told)
        if known is None or known.action == "pause":  # which may have been decided on since
            self._verdicts.pop(report.trial, None)
            known = self._decided[told] = self.rule.report(report)
        return known

    def _tell_who_waits(self) -> None:
        """Tell of trials that begin to wait for another one's phase, and of those that wait no more."""
        for number, trial in self._trials.items():
            blocker = None if trial.running else self._blocker(trial)
            key = blocker.key if blocker else None
            if key != trial.parked:
                trial.parked = key
                where = {"phase": blocker.kind, "cycle": blocker.cycle} if blocker else {}
                self.events.append({"type": "parked" if blocker else "released", "trial": number, **where})

    def _hand_back(self, trial: int, how: Literal["paused", "left"]) -> None:
        """Let go of a trial that has not ended."""
        attempt = self._trials.pop(trial).attempt
        if how == "paused":
            self._paused[trial] = attempt
        self._unclaim(trial)
        self.events.append({"type": how, "trial": trial})
        self.settle()

    def _fail(self, current: Assignment, reason: str) -> None:
        current.over = True
        ending = {"status": "FAILED", "error": reason}
        self._end(current.trial, ending, self._trials[current.trial].attempt)

    def _fail_what_nobody_can_take(self) -> None:
        dead = self._dead_lanes
        for number, trial in list(self._trials.items()):
            all_dead = trial.lane is None and self._num_lanes and len(dead) >= self._num_lanes
            if not trial.running and (trial.lane in dead or all_dead):
                reason = dead[trial.lane] if trial.lane in dead else next(iter(dead.values()))
                self._end(number, {"status": "FAILED", "error": reason}, attempts=0)

    def _ready(self) -> list[int]:
        """Return the paused trials that are decided on."""
        self._verdicts.update(self.rule.decided())
        return [trial for trial in self._verdicts if trial in self._paused]

    def _end(self, trial: int, ending: Event, attempts: int) -> None:
        self._close_trial(trial, ending, attempts)
        self.settle()

    def _close_trial(self, trial: int, ending: Event, attempts: int) -> None:
        self._trials.pop(trial, None)
        self._verdicts.pop(trial, None)
        self._unclaim(trial)
        self.events.append({**ending, "type": "final", "trial": trial, "attempts": attempts})
        self.rule.ended(trial)
