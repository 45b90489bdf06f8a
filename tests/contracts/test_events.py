"""Every kind of event comes out of its JSON as it went in, and endings say what became of a trial."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from typing import get_args

import pytest

from raysweep.contracts import Decision, Interrupted, Report
from raysweep.contracts.events import (
    KINDS,
    ClientSilent,
    ControlFailed,
    Event,
    LaneHeard,
    LaneSilent,
    LaneStarted,
    OffLane,
    PhaseClaimed,
    PhaseFinished,
    PhaseResumed,
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
    Warned,
    from_json,
    to_json,
)
from raysweep.errors import DivergedError, TrialError
from raysweep.job.plan import PhasePlan, TrialPlan

REPORT = Report(trial=1, phase="learn", cycle=1, step=5, flops=1e9, share=0.1, loss=0.1 + 0.2)
EVENTS: list[Event] = [
    PhaseClaimed(trial=1, key="k"),
    Reported(trial=1, report=REPORT),
    StepLogged(trial=1, arm="dense", phase="learn", cycle=2, steps=20, point={"step": 10.0, "loss": 1 / 3}),
    LaneStarted(lane="lane-0", group="g", pids=[1, 2]),
    Warned(trial=1, text="a Größe"),
    PhaseResumed(trial=1, arm="main", phase="baseline", cycle=0, steps=20, step=5),
    PhaseFinished(trial=1, record={"key": "k", "head_map": [[0, -1]], "perplexity": math.inf, "decision": None}),
    ControlFailed(trial=1, arm="dense", error="no"),
    TrialRetried(trial=1, attempt=2),
    TrialWaiting(trial=1, phase="baseline", cycle=0),
    TrialReleased(trial=1),
    TrialPaused(trial=1),
    TrialResumed(trial=1),
    TrialLeft(trial=1),
    TrialFinished(trial=1, ending=TrialEnding(status="STOPPED", stopped="worse"), attempts=2),
    SweepInterrupted(reason="asked"),
    LaneSilent(lane="lane-2", seconds=70.5, lost=True),
    LaneHeard(lane="lane-2"),
    ClientSilent(ticket=3),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_the_same_behind_its_json(event: Event) -> None:
    assert from_json(to_json(event)) == event


def test_all_kinds_are_tried_here() -> None:
    assert {type(event) for event in EVENTS} == set(KINDS.values()) and len(EVENTS) == len(KINDS) == 19
    assert set(get_args(Question)) < set(KINDS.values()) and set(get_args(OffLane)) < set(KINDS.values())


def test_a_record_keeps_the_order_of_its_fields_which_the_archive_writes() -> None:
    record = {"trial": 1, "phase": "learn", "cycle": 1, "key": "k", "arm": "main"}
    event = from_json(to_json(PhaseFinished(trial=1, record=record)))
    assert isinstance(event, PhaseFinished) and list(event.record) == list(record)


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(KeyError, match="Surprise"):
        from_json(json.dumps({"event": "Surprise", "trial": 1}))


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(TypeError):
        to_json(PhaseFinished(trial=1, record={"key": object()}))


def test_events_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        EVENTS[0].trial = 2  # type: ignore[misc, union-attr]


def test_an_event_of_a_phase_names_it() -> None:
    phase = PhasePlan(kind="learn", cycle=2, params={"steps": 20}, key="k")
    plan = TrialPlan(trial=3, values={}, seed=0, model={}, data={}, training={}, checkpoint_every_steps=1,
                     phases=(phase,), halting={}, controls={})  # fmt: skip
    expected = PhaseResumed(trial=3, arm="dense", phase="learn", cycle=2, steps=20, step=5)
    assert PhaseResumed.of(plan, phase, "dense", step=5) == expected


def test_what_ends_a_trial_is_its_status() -> None:
    stop = Interrupted(Decision(action="stop", reason="worse"))
    assert TrialEnding.of(stop) == TrialEnding(status="STOPPED", stopped="worse")
    assert TrialEnding.of(DivergedError("nan")) == TrialEnding(status="DIVERGED", error="nan")
    assert TrialEnding.of(TrialError("no heads")) == TrialEnding(status="FAILED", error="no heads")


def test_a_pause_ends_no_trial() -> None:
    with pytest.raises(AssertionError):
        TrialEnding.of(Interrupted(Decision(action="pause")))
