"""A worker group in virtual time: it says to the dispatcher what a real one says, in the same order.

The order is that of `core.phases.run_trial` and `cluster.lane.work`. Time passes where a generator yields: how many
seconds go by, or None while there is nothing to do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from raysweep.contracts import GO, Decision
from raysweep.core.judged import Judged
from raysweep.engine.dispatcher import Assignment, Dispatcher, Event
from raysweep.errors import DivergedError, TrialError
from raysweep.halting import reached, result, verdict
from raysweep.plan import LOG_EVERY, PhasePlan, TrialPlan, derived_seed
from raysweep.records import PhaseRecord
from raysweep.simulation.acts import Change, Trace, change, density, record, step_flops
from raysweep.simulation.curves import Curves, Model

Time = Iterator[float | None]
FETCH_SECONDS = 0.1
"""What taking a phase from the store takes."""


class Killed(Exception):
    """The worker group is gone, in the middle of a phase."""


class HandedBack(Exception):
    """The trial does not go on here."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.action)
        self.decision = decision


@dataclass(kw_only=True)
class Store:
    """The phase store: outcomes by key, and checkpoints inside training phases."""

    outcomes: dict[str, tuple[PhaseRecord, Model]] = field(default_factory=dict)
    partial: dict[str, Trace] = field(default_factory=dict)


@dataclass(kw_only=True)
class Counts:
    """What workers did."""

    phases_run: int = 0
    phases_reused: int = 0
    steps: int = 0
    """Executed, those that a kill made vain included."""
    unshared_steps: int = 0
    """That all trials would have executed, each on its own and undisturbed, to come as far."""
    kills: int = 0
    busy_s: float = 0.0


@dataclass(kw_only=True)
class Chance:
    """When workers die: of every phase that an attempt runs, a share, at a moment drawn at random."""

    seed: int
    kill: float
    _attempts: dict[tuple[int, str], int] = field(default_factory=dict)

    def death(self, trial: int, key: str) -> float | None:
        """Return at which share of what is left of a phase its worker dies; None: it lives."""
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
            Killed: in the middle of one.
        """
        self.dispatcher.post({"type": "group", "lane": self.lane, "group": self.group, "pids": []})
        finished = -1
        while True:
            assignment = self.dispatcher.assignment(self.lane, self.group, finished)
            if assignment == "leave":
                return
            if assignment == "idle":
                yield None
            else:
                yield from self._run(assignment)
                finished = assignment.sequence

    def _run(self, assignment: Assignment) -> Time:
        ending: Event = {"status": "COMPLETE", "error": None}
        try:
            yield from _Trial(worker=self, plan=TrialPlan.from_json(assignment.plan)).run()
        except HandedBack as back:
            if back.decision.action != "stop":
                self.dispatcher.release(self.lane, assignment.sequence, back.decision)
                return
            ending = {"status": "STOPPED", "stopped": back.decision.reason, "error": None}
        except TrialError as error:
            ending = {"status": "DIVERGED" if isinstance(error, DivergedError) else "FAILED", "error": str(error)}
        self.dispatcher.finish(self.lane, assignment.sequence, ending)

    def passes(self, seconds: float) -> Time:
        seconds *= self.slowness
        self.counts.busy_s += seconds
        yield seconds


@dataclass(kw_only=True)
class _Trial:
    """One trial on its way through its phases."""

    worker: Worker
    plan: TrialPlan
    model: Model | None = None
    arm: str = "main"

    def run(self) -> Time:
        plan, own, judged = self.plan, list[PhaseRecord](), Judged(plan=self.plan, ask=self._ask)
        for phase in plan.phases:
            own.append((yield from self._phase(phase, judged)))
            decision = judged.finished(phase, own[-1])
            if verdict(own, plan.halting) or phase is plan.phases[-1]:
                break
            obey(decision)
        kept, _ = result(own, plan.halting)
        seen = {record.key for record in own}
        for arm, phases in plan.controls.items():
            self.arm, self.model = arm, None
            try:
                for phase in reached(arm, phases, kept.cycle):
                    if phase.key in seen:
                        self.model = self.worker.store.outcomes[phase.key][1]
                    else:
                        yield from self._phase(phase, None)
            except TrialError as error:
                self._post({"type": "control_failed", "arm": arm, "error": str(error)})
