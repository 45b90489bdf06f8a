"""What lost workers cost: from the events of a sweep, how far a phase had come and where it went on."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sweeps import make_sweep

from raysweep.contracts.events import (
    Event,
    LaneStarted,
    PhaseFinished,
    PhaseResumed,
    StepLogged,
    TrialEnding,
    TrialFinished,
    TrialLeft,
    TrialRetried,
)
from raysweep.records.schema import Retry
from raysweep.sweep.retries import RetryLog


@pytest.fixture
def log(tmp_path: Path) -> RetryLog:
    return RetryLog(make_sweep(tmp_path), interval=20)


ENDED = TrialFinished(trial=1, ending=TrialEnding(status="COMPLETE"), attempts=1)


def progress(step: int, phase: str = "learn", trial: int = 1, arm: str = "main") -> Event:
    return StepLogged(trial=trial, arm=arm, phase=phase, cycle=1, steps=60, point={"step": float(step)})


def resumed(step: int, phase: str = "learn") -> Event:
    return PhaseResumed(trial=1, arm="main", phase=phase, cycle=1, steps=60, step=step)


def finished(phase: str = "learn") -> Event:
    return PhaseFinished(trial=1, record={"arm": "main", "phase": phase, "cycle": 1})


def retry(attempt: int = 2) -> Event:
    return TrialRetried(trial=1, attempt=attempt)


def noted(log: RetryLog, *events: Event) -> list[tuple[int, int, int]]:
    """Return attempt, last step and step from which it went on, of each loss."""
    for event in events:
        log.note(event)
    return [(retry.attempt, retry.reached, retry.resumed_at) for retry in log._folder.retries()]


def test_nothing_lost_nothing_noted(log: RetryLog) -> None:
    group = LaneStarted(lane="lane-0", group="g", pids=[1])
    assert noted(log, group, progress(10), resumed(10), finished(), ENDED) == []


def test_a_phase_goes_on_from_its_checkpoint(log: RetryLog) -> None:
    assert noted(log, progress(10), progress(30), retry(), finished("baseline"), resumed(20)) == [(2, 30, 20)]
    expected = Retry(trial=1, attempt=2, phase="learn", cycle=1, reached=30, resumed_at=20, interval=20)
    assert log._folder.retries() == [expected]


def test_without_a_checkpoint_a_phase_begins_anew(log: RetryLog) -> None:
    assert noted(log, progress(10), retry(), progress(10), progress(20)) == [(2, 10, 0)]


def test_a_phase_that_had_ended_costs_nothing(log: RetryLog) -> None:
    assert noted(log, progress(40), retry(), finished()) == [(2, 40, 40)]


def test_what_was_recorded_before_the_loss_is_not_lost(log: RetryLog) -> None:
    assert noted(log, progress(40), finished(), retry(), resumed(20, "baseline")) == [(2, 0, 0)]


def test_going_on_elsewhere_repeats_nothing(log: RetryLog) -> None:
    assert noted(log, progress(40, "baseline"), retry(), progress(10, "learn")) == [(2, 40, 40)]


def test_arms_are_told_apart(log: RetryLog) -> None:
    assert noted(log, progress(40), retry(), progress(10, arm="dense")) == [(2, 40, 40)]


def test_a_second_loss_on_the_way_back_is_made_up_for_once(log: RetryLog) -> None:
    events = [progress(30), retry(2), retry(3), resumed(20), progress(30)]
    assert noted(log, *events) == [(2, 30, 30), (3, 30, 20)]


def test_a_trial_that_never_goes_on_is_noted_when_it_ends(log: RetryLog) -> None:
    assert noted(log, progress(30), retry()) == []
    assert noted(log, ENDED) == [(2, 30, 30)]
    assert noted(log, progress(10), retry(3), TrialLeft(trial=1))[1:] == [(3, 10, 10)]


def test_trials_do_not_mix(log: RetryLog) -> None:
    assert noted(log, progress(30), progress(50, trial=2), retry(), progress(60, trial=2), resumed(20)) == [(2, 30, 20)]
