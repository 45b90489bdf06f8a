"""Describe what happens in a running sweep: one class for each kind of event, and their JSON.

The workers of a lane, real or simulated, and the dispatcher make events; the recorder and the driver read them. JSON
exists only between processes, where the mailbox actor takes events in and hands them out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from raysweep.contracts.stopping import Interrupted, Report
from raysweep.errors import DivergedError, TrialError
from raysweep.job.plan import PhasePlan, TrialPlan


@dataclass(frozen=True, kw_only=True)
class TrialEvent:
    """An event of one trial."""

    trial: int


@dataclass(frozen=True, kw_only=True)
class TrainingEvent(TrialEvent):
    """An event inside a training phase."""

    arm: str
    """`main`, or the control arm that the phase belongs to."""
    phase: str
    """Its kind: `baseline` or `learn`."""
    cycle: int
    steps: int
    """Optimizer steps of the whole phase."""

    @classmethod
    def of(cls, plan: TrialPlan, phase: PhasePlan, arm: str, **content: Any) -> Self:
        """Return an event of a phase of a trial; `content` holds the fields that only this kind of event has."""
        return cls(trial=plan.trial, arm=arm, phase=phase.kind, cycle=phase.cycle, steps=phase.steps, **content)


# What a worker asks: each is answered with a Decision.


@dataclass(frozen=True, kw_only=True)
class PhaseClaimed(TrialEvent):
    """A trial is about to run a phase that is not in the store."""

    key: str


@dataclass(frozen=True, kw_only=True)
class Reported(TrialEvent):
    """A trial reports a held-out loss to the stopping rule."""

    report: Report


@dataclass(frozen=True, kw_only=True)
class StepLogged(TrainingEvent):
    """A training phase has reached a step whose numbers are logged."""

    point: dict[str, float]
    """See `PhaseRecord.curve`."""


# What a worker posts, without an answer.


@dataclass(frozen=True, kw_only=True)
class LaneStarted:
    """A lane has a new worker group."""

    lane: str
    group: str
    pids: list[int]
    """Process ids of the workers, by rank."""


@dataclass(frozen=True, kw_only=True)
class LaneSilent:
    """A lane has given no sign of life for some time."""

    lane: str
    seconds: float
    lost: bool = False
    """It is given up: that was longer than `scale.lane_timeout` allows."""


@dataclass(frozen=True, kw_only=True)
class LaneHeard:
    """A lane that was silent has given a sign of life."""

    lane: str


@dataclass(frozen=True, kw_only=True)
class ClientSilent:
    """The process of a trial's client has given no sign of life for too long."""

    ticket: int
    """The number of the trial's start."""


@dataclass(frozen=True, kw_only=True)
class Warned(TrialEvent):
    """A trial warns the user."""

    text: str


@dataclass(frozen=True, kw_only=True)
class PhaseResumed(TrainingEvent):
    """A training phase goes on from a checkpoint."""

    step: int
    """Finished optimizer steps in that checkpoint."""


@dataclass(frozen=True, kw_only=True)
class PhaseFinished(TrialEvent):
    """A trial has a phase's outcome, which is in the store."""

    record: Mapping[str, Any]
    """A `PhaseRecord` as plain data: records/ is a layer above this one."""


@dataclass(frozen=True, kw_only=True)
class ControlFailed(TrialEvent):
    """A control arm of a trial cannot be carried out."""

    arm: str
    error: str


# What the dispatcher adds.


@dataclass(frozen=True, kw_only=True)
class TrialRetried(TrialEvent):
    """A trial lost its workers; a new group begins its next attempt."""

    attempt: int
    fruitless: int = 0
    """How many attempts before it, in a row, had passed no checkpoint and finished no phase."""


@dataclass(frozen=True, kw_only=True)
class TrialWaiting(TrialEvent):
    """A trial without a lane waits for a phase that another trial is running."""

    phase: str
    cycle: int


@dataclass(frozen=True, kw_only=True)
class TrialReleased(TrialEvent):
    """A waiting trial may go on."""


@dataclass(frozen=True, kw_only=True)
class TrialPaused(TrialEvent):
    """A trial is off its lane until the stopping rule decides on it."""


@dataclass(frozen=True, kw_only=True)
class TrialResumed(TrialEvent):
    """The stopping rule lets a paused trial go on."""


@dataclass(frozen=True, kw_only=True)
class TrialLeft(TrialEvent):
    """A trial is left for a later session of the sweep."""


@dataclass(frozen=True, kw_only=True)
class TrialEnding:
    """How a trial ended."""

    status: Literal["COMPLETE", "STOPPED", "DIVERGED", "FAILED"]
    stopped: str | None = None
    """Why the stopping rule ended it."""
    error: str | None = None
    """Why it diverged or failed."""
    cluster_fault: bool = False
    """Whether it failed because the cluster lost it, and not by its values."""

    @staticmethod
    def of(error: Interrupted | TrialError) -> TrialEnding:
        """Return the ending of a trial whose phases raised an error: a decision to stop, or a fault of its plan."""
        if isinstance(error, Interrupted):
            assert error.decision.action == "stop", "other decisions do not end a trial"
            return TrialEnding(status="STOPPED", stopped=error.decision.reason)
        return TrialEnding(status="DIVERGED" if isinstance(error, DivergedError) else "FAILED", error=str(error))


@dataclass(frozen=True, kw_only=True)
class TrialFinished(TrialEvent):
    """A trial has ended."""

    ending: TrialEnding
    attempts: int
    """How often it was run in this session; 0 if no lane was left to run it."""


@dataclass(frozen=True, kw_only=True)
class SweepInterrupted:
    """The sweep stops before its end; every trial leaves its lane."""

    reason: str


Question = PhaseClaimed | Reported | StepLogged
OffLane = TrialFinished | TrialPaused | TrialLeft
"""Events after which a trial is on no lane, and waits for none."""
Event = (
    Question | LaneStarted | LaneSilent | LaneHeard | ClientSilent
    | Warned | PhaseResumed | PhaseFinished | ControlFailed | TrialRetried | TrialWaiting
    | TrialReleased | TrialResumed | OffLane | SweepInterrupted
)  # fmt: skip
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}
PARTS = {"report": Report, "ending": TrialEnding}
"""Fields of events that are dataclasses themselves."""


def to_json(event: Event) -> str:
    """Return an event as JSON, for `from_json` in another process."""
    # vars and not asdict: asdict copies a record's long lists value by value. json calls `default` for PARTS alone.
    return json.dumps({"event": type(event).__name__, **vars(event)}, default=asdict)


def from_json(text: str) -> Event:
    """Return the event that `to_json` was given.

    Raises:
        KeyError: no such kind of event.
    """
    content = json.loads(text)
    kind = KINDS[content.pop("event")]
    for name, part in PARTS.items():
        if name in content:
            content[name] = part(**content[name])
    return kind(**content)
