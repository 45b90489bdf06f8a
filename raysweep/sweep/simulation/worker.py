"""A worker group in virtual time: it asks and posts to the dispatcher what a real one does, in the same order.

It stands for `cluster.lane.work`; the order of phases is that of `trial.steps.run_in_order`, which drives real trials,
too. Time passes where a generator yields: so many seconds, or None while there is nothing to do.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

from raysweep.contracts import GO, Decision, Interrupted, first_not_go, raise_unless_go
from raysweep.contracts.events import (
    Event,
    LaneStarted,
    PhaseClaimed,
    PhaseFinished,
    PhaseResumed,
    StepLogged,
    TrialEnding,
)
from raysweep.errors import DivergedError, TrialError
from raysweep.job.plan import LOG_EVERY, PhasePlan, TrialPlan, derived_seed
from raysweep.records.schema import PhaseRecord
from raysweep.sweep.dispatcher import Dispatcher
from raysweep.sweep.lanes import Assignment
from raysweep.sweep.simulation.acts import Change, Trace, change, density, record, step_flops
from raysweep.sweep.simulation.curves import Curves, Model
from raysweep.trial.judged import JudgedProgress
from raysweep.trial.steps import run_in_order

Time = Iterator[float | None]
FETCH_SECONDS = 0.1
"""What it takes to read the outcome of a phase from the store."""
CHECKPOINT_SECONDS = 2.0
"""From the decision that a trial pauses or leaves until its lane is free."""


class Killed(Exception):
    """The worker group was killed in the middle of a phase."""


@dataclass(kw_only=True)
class Store:
    """The phase store: outcomes by key, and checkpoints inside training phases."""

    outcomes: dict[str, tuple[PhaseRecord, Model]] = field(default_factory=dict)
    partial: dict[str, Trace] = field(default_factory=dict)


@dataclass(kw_only=True)
class Counts:
    """What the workers of all lanes did."""

    runs: Counter[str] = field(default_factory=Counter)
    """How often each phase was run to its end, by key."""
    steps: int = 0
    """Executed steps, lost ones included."""
    wasted: int = 0
    """Steps lost: executed since the last checkpoint when a worker was killed."""
    busy_s: float = 0.0
    """Seconds at work."""


@dataclass(kw_only=True)
class Chance:
    """When workers die: each phase kills its worker with probability `kill`, at a random moment."""

    seed: int
    kill: float
    _attempts: dict[tuple[int, str], int] = field(default_factory=dict)

    def death(self, trial: int, key: str) -> float | None:
        """Return at which share of what is left of a phase its worker dies; None: it lives."""
        # Seeded by trial, phase and attempt, so that the draw does not depend on the order in which lanes are served.
        attempt = self._attempts[trial, key] = self._attempts.get((trial, key), 0) + 1
        draw = random.Random(derived_seed(str(self.seed), "kill", trial, key, attempt))
        return draw.random() if draw.random() < self.kill else None


@dataclass(kw_only=True)
class Worker:
    """One life of a lane's worker group."""

    lane: str
    group: str
    slowness: float
    dispatcher: Dispatcher
    curves: Curves
    store: Store
    chance: Chance
    counts: Counts

    def live(self) -> Time:
        """Run trials until there are no more.

        Raises:
            Killed: in the middle of a phase.
        """
        self.dispatcher.post(LaneStarted(lane=self.lane, group=self.group, pids=[]))
        finished = -1
        while True:
            assignment = self.dispatcher.assignment(self.lane, self.group, finished)
            # A real worker waits inside the mailbox; here the simulation wakes the lane when something has happened.
            if assignment == "leave":
                return
            if assignment == "idle":
                yield None
            else:
                yield from self._run(assignment)
                finished = assignment.sequence

    def _run(self, assignment: Assignment) -> Time:
        """Run one trial and end it, or hand it back; see `cluster.lane`."""
        ending = TrialEnding(status="COMPLETE")
        try:
            yield from _SimulatedTrial(worker=self, plan=TrialPlan.from_json(assignment.plan)).in_order()
        except Interrupted as interrupted:
            if interrupted.decision.action != "stop":
                # A trial that waits has not begun its phase, so it writes no checkpoint.
                yield from self.passes(0.0 if interrupted.decision.action == "wait" else CHECKPOINT_SECONDS)
                self.dispatcher.release(self.lane, assignment.sequence, interrupted.decision)
                return
            ending = TrialEnding.of(interrupted)
        except TrialError as error:
            ending = TrialEnding.of(error)
        self.dispatcher.finish(self.lane, assignment.sequence, ending)

    def passes(self, seconds: float) -> Time:
        """Let so many seconds of a lane that is not slow go by."""
        seconds *= self.slowness
        self.counts.busy_s += seconds
        yield seconds


@dataclass(kw_only=True)
class _SimulatedTrial:
    """Runs the phases of one trial in virtual time."""

    worker: Worker
    plan: TrialPlan
    model: Model | None = None
    """After the previous phase; None at the start of an arm."""
    arm: str = "main"

    def in_order(self) -> Time:
        """Run all phases."""
        yield from run_in_order(self.plan, self, JudgedProgress(plan=self.plan, ask=self.worker.dispatcher.ask))

    def begin_arm(self, arm: str) -> None:
        self.arm, self.model = arm, None

    def skip(self, phase: PhasePlan) -> None:
        # Without time: a real arm restores a state only when it runs a phase.
        self.model = self.worker.store.outcomes[phase.key][1]

    def post(self, event: Event) -> None:
        self.worker.dispatcher.post(event)

    def run(self, phase: PhasePlan, judged: JudgedProgress | None) -> Generator[float | None, None, PhaseRecord]:
        """Take a phase from the store, or run it."""
        # The same questions and events as in trial/phases.py: the claim before a phase is run, its record behind it.
        worker, reused = self.worker, phase.key in self.worker.store.outcomes
        if reused:
            yield from worker.passes(FETCH_SECONDS)
        else:
            raise_unless_go(worker.dispatcher.ask(PhaseClaimed(trial=self.plan.trial, key=phase.key)))
            yield from _SimulatedPhase(trial=self, phase=phase, judged=judged).run()
        known, self.model = worker.store.outcomes[phase.key]
        record = replace(known, trial=self.plan.trial, arm=self.arm, reused=reused)
        self.post(PhaseFinished(trial=self.plan.trial, record=record.to_dict()))
        return record


@dataclass(kw_only=True)
class _SimulatedPhase:
    """One phase that is run, from its checkpoint on if there is one."""

    trial: _SimulatedTrial
    phase: PhasePlan
    judged: JudgedProgress | None
    before: Model = field(init=False)
    changed: Change = field(init=False)
    trace: Trace = field(init=False)

    def __post_init__(self) -> None:
        store, phase = self.trial.worker.store, self.phase
        # The small model of from_scratch_small has new weights, and the heads that another phase left.
        shaped_by = phase.params.get("shaped_by")
        self.before = self.trial.worker.curves.begin(phase, None if shaped_by else self.trial.model)
        if shaped_by:
            self.before = replace(self.before, heads=store.outcomes[shaped_by][1].heads)
        # Before the first step, since the loss on the way depends on the heads that are left. The real trial makes the
        # changes at the steps of events; here they count for the whole phase.
        self.changed = change(phase, self.before)
        # A copy: what is logged from here on is lost with the worker, and the checkpoint must stay as it was written.
        self.trace = store.partial.get(phase.key, Trace()).copy()

    def run(self) -> Time:
        """Let the phase's time pass, and put its outcome into the store.

        Raises:
            Interrupted: the sweep's decision; what was done is in a checkpoint.
            Killed: its worker died.
            DivergedError: its loss is not finite.
        """
        worker, phase = self.trial.worker, self.phase
        flops = phase.steps * step_flops(self.trial.plan, density(self.changed.after))
        seconds = worker.curves.seconds(phase, self.before, flops)
        death = worker.chance.death(self.trial.plan.trial, phase.key)
        # A phase without steps has no checkpoints: its next attempt begins anew.
        if phase.steps:
            yield from self._train(seconds / phase.steps, death)
        else:
            yield from worker.passes(seconds * (1.0 if death is None else death))
            if death is not None:
                raise Killed
        loss = self._loss(1.0)
        outcome = record(self.trial.plan, phase, self.changed, loss, self.trace, seconds)
        worker.store.outcomes[phase.key] = outcome, replace(self.changed.after, loss=loss)
        # As the real store does: behind the outcome nothing resumes from the checkpoint.
        worker.store.partial.pop(phase.key, None)
        worker.counts.runs[phase.key] += 1

    def _train(self, step_seconds: float, death: float | None) -> Time:
        counts, start, steps = self.trial.worker.counts, self.trace.step, self.phase.steps
        # Of the steps that are left, so that each attempt gets on by some on average, however often workers die.
        last = steps if death is None else start + math.floor(death * (steps - start))
        if start:
            self.trial.post(PhaseResumed.of(self.trial.plan, self.phase, self.trial.arm, step=start))
        for step in self._moments(start, steps):
            done = min(step, last)
            yield from self.trial.worker.passes((done - self.trace.step) * step_seconds)
            counts.steps += done - self.trace.step
            self.trace.step = done
            # The worker dies before the next moment at which it would log or write a checkpoint.
            if done < step:
                kept = self.trial.worker.store.partial.get(self.phase.key, Trace()).step
                counts.wasted += done - kept
                raise Killed
            self._after_step(step)

    def _moments(self, start: int, steps: int) -> list[int]:
        """Return the steps after which there is something to do."""
        # Time jumps from one of these steps to the next: a simulation costs nothing for the steps between.
        every = (LOG_EVERY, self.phase.params["evaluate_every"], self.trial.plan.checkpoint_every_steps)
        due = {step for each in every if each for step in range(each, steps, each) if step > start}
        return sorted(due | {steps})

    def _after_step(self, step: int) -> None:
        """Log, evaluate, write a checkpoint, and carry out the sweep's decision; as PhaseTraining does."""
        worker, params, steps = self.trial.worker, self.phase.params, self.phase.steps
        decisions = []
        if step % LOG_EVERY == 0 or step == steps:
            point = {"step": float(step), "loss": self._loss(step / steps)}
            self.trace.curve.append(point)
            logged = StepLogged.of(self.trial.plan, self.phase, self.trial.arm, point=point)
            decisions.append(worker.dispatcher.ask(logged))
        # The last step is followed by the phase's outcome, not by a checkpoint, and its loss is reported from there.
        if step == steps:
            return
        if params["evaluate_every"] and step % params["evaluate_every"] == 0:
            decisions.append(self._evaluate(step))
        # A trial that is paused or left goes on from this very step; one that is stopped never goes on.
        decision = first_not_go(decisions)
        if decision.action in ("pause", "leave") or step % self.trial.plan.checkpoint_every_steps == 0:
            worker.store.partial[self.phase.key] = self.trace.copy()
        raise_unless_go(decision)

    def _evaluate(self, step: int) -> Decision:
        """Evaluate, and report the loss where the phase is judged."""
        plan = self.trial.plan
        loss, flops = self._loss(step / self.phase.steps), step * step_flops(plan, density(self.changed.after))
        self.trace.evaluations.append({"step": float(step), "loss": loss, "training_flops": flops})
        if self.judged is None:
            return GO
        return self.judged.report(
            self.phase, step, loss=loss, flops=flops, dense_flops_per_step=step_flops(plan, 1.0)
        )  # fmt: skip

    def _loss(self, share: float) -> float:
        loss = self.trial.worker.curves.loss(self.phase, self.before, self.changed.after, share)
        if not math.isfinite(loss):
            raise DivergedError(f"{self.phase.label}: the loss is {loss}.")
        return loss
