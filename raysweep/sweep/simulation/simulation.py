"""A sweep in virtual time: the real agenda, study, dispatcher, stopping rule and recorder, with simulated workers."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from raysweep.contracts.events import (
    ControlFailed,
    Event,
    PhaseFinished,
    TrialFinished,
    TrialLeft,
    TrialPaused,
    TrialReleased,
    TrialResumed,
)
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, derived_seed
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.reports.live.progress import Silent
from raysweep.sweep.admission import has_room
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.bookkeeping import record
from raysweep.sweep.dispatcher import Dispatcher
from raysweep.sweep.recorder import Recorder
from raysweep.sweep.simulation.curves import Curves
from raysweep.sweep.simulation.worker import Chance, Counts, Killed, Store, Time, Worker
from raysweep.sweep.stopping import rule_of
from raysweep.sweep.study import Study

RESTART_SECONDS = 17.0
"""From the death of a worker group until the next one asks for work; measured on a real lane."""
SLOWNESS = 3.0
"""How many times slower the slow lanes are."""
NOWHERE = Fingerprints(model="simulated", data="simulated")
STIRRING = (PhaseFinished, TrialFinished, TrialPaused, TrialLeft, ControlFailed, TrialReleased, TrialResumed)
"""Events after which there may be work for an idle lane."""


@dataclass(frozen=True, kw_only=True)
class Adversity:
    """What goes wrong in a simulation."""

    kill: float
    """Probability that a phase's worker is killed, for each attempt at the phase."""
    stragglers: float
    """Share of lanes that are slow."""
    seed: int


@dataclass(kw_only=True)
class _SimulatedLane:
    name: str
    slowness: float
    """How many times longer everything takes on it."""
    lives: int = 0
    """Worker groups that were started on it."""
    worker: Time | None = None
    """The running worker group; None before the first one and after a kill."""


@dataclass(kw_only=True)
class Simulation:
    """One run of a job, from its first trial to its last."""

    folder: SweepFolder
    job: Job
    curves: Curves
    adversity: Adversity
    news: Callable[[int, float], None] = lambda ended, seconds: None
    """Called whenever a trial ends, with the number of ended trials and the virtual time."""
    now: float = 0.0
    """Virtual seconds since the start."""
    kills: int = 0
    counts: Counts = field(default_factory=Counts)
    store: Store = field(default_factory=Store)
    _queue: list[tuple[float, int, _SimulatedLane]] = field(default_factory=list)
    """A heap: when each lane goes on. The number between breaks ties in the order of entry, so that a run can be
    repeated exactly."""
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _idle: deque[_SimulatedLane] = field(default_factory=deque)
    _out: set[int] = field(default_factory=set)
    """Trials that the dispatcher has, paused ones left out."""
    _ended: int = 0
    _closed: bool = False
    """Whether every trial has ended, so that lanes shall return."""

    def __post_init__(self) -> None:
        # The parts that a driver has, in the order in which it builds them, without TensorBoard runs.
        scale = self.job.spec.scale
        self._dispatcher = Dispatcher(max_attempts=scale.max_attempts, rule=rule_of(self.job.spec.search))
        study = Study(self.job, self.folder.path / "study.journal") if self.job.space else None
        self._agenda = Agenda(self.folder, self.job, study)
        self._recorder = Recorder(
            self.folder, self.job, Silent(), clock=lambda: self.now, tensorboard=False
        )  # fmt: skip
        self._chance = Chance(seed=self.adversity.seed, kill=self.adversity.kill)
        self._lanes = self._make_lanes(min(scale.lanes, self._agenda.remaining))

    def run(self) -> list[str]:
        """Run to the end; return what is wrong, in words, if the end is never reached."""
        self._dispatcher.expect_lanes(len(self._lanes))
        self._submit()
        for lane in self._lanes:
            self._wake(lane, after=0.0)
        # The queue runs empty when every lane is idle or has returned: nothing can happen any more.
        while self._queue:
            self.now, _, lane = heapq.heappop(self._queue)
            self._go_on(lane)
            self._take_events()
        if self._agenda.finished and not self._out:
            return []
        return [f"the sweep stands still: {self._agenda.remaining} trials are left, and every lane waits"]

    @property
    def num_lanes(self) -> int:
        return len(self._lanes)

    def _make_lanes(self, number: int) -> list[_SimulatedLane]:
        # Which lanes are slow follows from the seed alone, so that equal seeds give equal sweeps.
        slow = round(self.adversity.stragglers * number)
        order = sorted(range(number), key=lambda lane: derived_seed(str(self.adversity.seed), "slow", lane))
        slowness = {lane: SLOWNESS for lane in order[:slow]}
        return [_SimulatedLane(name=f"lane-{lane}", slowness=slowness.get(lane, 1.0)) for lane in range(number)]

    def _wake(self, lane: _SimulatedLane, after: float) -> None:
        """Let a lane go on so many seconds from now."""
        heapq.heappush(self._queue, (self.now + after, next(self._order), lane))

    def _go_on(self, lane: _SimulatedLane) -> None:
        """Run a lane's worker until time passes, and wake the lane when that time is over."""
        if lane.worker is None:
            lane.lives += 1
            lane.worker = self._worker(lane).live()
        try:
            # -1: the worker has returned for good.
            seconds = next(lane.worker, -1.0)
        except Killed:
            # The next life of the lane is a new group, to which the dispatcher gives the trial of the lost one.
            self.kills += 1
            lane.worker = None
            self._wake(lane, after=RESTART_SECONDS)
            return
        if seconds is None:
            self._idle.append(lane)
        elif seconds >= 0:
            self._wake(lane, after=seconds)

    def _worker(self, lane: _SimulatedLane) -> Worker:
        return Worker(
            lane=lane.name,
            group=f"{lane.name}-{lane.lives}",
            slowness=lane.slowness,
            dispatcher=self._dispatcher,
            curves=self.curves,
            store=self.store,
            chance=self._chance,
            counts=self.counts,
        )

    def _take_events(self) -> None:
        """Record what happened, submit the trials that follow from it, and wake the lanes that may have work now."""
        stirred = False
        # A loop: to submit a trial may make events, too.
        while self._dispatcher.events:
            events, self._dispatcher.events = self._dispatcher.events, []
            for event in events:
                self._take(event)
            if any(isinstance(event, STIRRING) for event in events):
                stirred = True
                self._submit()
        # Once, behind the loop, in the order in which lanes became idle: equal seeds must give equal sweeps. Only as
        # many lanes as there are trials for, as in the mailbox, unless all shall return.
        if stirred:
            for _ in range(len(self._idle) if self._closed else min(self._dispatcher.ready, len(self._idle))):
                self._wake(self._idle.popleft(), after=0.0)

    def _take(self, event: Event) -> None:
        record(event, self._recorder, self._agenda)
        if isinstance(event, TrialFinished | TrialPaused):
            self._out.discard(event.trial)
        if isinstance(event, TrialFinished):
            self._ended += 1
            self.news(self._ended, self.now)

    def _submit(self) -> None:
        """Submit trials while lanes have room; close the dispatcher when the last one has ended. See the searcher."""
        scale = self.job.spec.scale
        while has_room(len(self._out), lambda: self._dispatcher.waiting, scale.lanes):
            proposal = self._agenda.next()
            if proposal is None:
                self._dispatcher.never_run(self._agenda.unproposed)
                break
            plan = plan_of(self.job, proposal, NOWHERE)
            self._out.add(proposal.trial)
            self._recorder.start_trial(proposal, plan)
            self._dispatcher.submit(plan)
        if not self._out and self._agenda.finished:
            self._dispatcher.close()
            self._closed = True
