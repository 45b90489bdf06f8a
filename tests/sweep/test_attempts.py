"""Attempts that got on do not count; a trial that gets no further is given up, by its own fault or the cluster's."""

from __future__ import annotations

import pytest

from raysweep.contracts.events import Event, PhaseFinished, PhaseResumed, StepLogged
from raysweep.sweep.attempts import Attempts


def logged(step: int, phase: str = "learn") -> Event:
    return StepLogged(trial=1, arm="main", phase=phase, cycle=1, steps=90, point={"step": float(step)})


def resumed(step: int) -> Event:
    return PhaseResumed(trial=1, arm="main", phase="learn", cycle=1, steps=90, step=step)


def finished(*, reused: bool) -> Event:
    return PhaseFinished(trial=1, record={"key": "k", "reused": reused})


def fruitless(*lives: list[Event]) -> list[int]:
    """Return the count after each attempt, all of which were lost."""
    attempts, found = Attempts(checkpoint_every=20), []
    for events in lives:
        for event in events:
            attempts.note(event)
        attempts.lost()
        found.append(attempts.fruitless)
        attempts.retry()
    assert attempts.number == len(lives) + 1
    return found


@pytest.mark.parametrize(
    ("events", "got_on"),
    [
        ([], False),
        ([logged(10), logged(20)], False),  # the checkpoint of step 20 is written after it is logged
        ([logged(10), logged(20), logged(30)], True),
        ([resumed(20), logged(30), logged(40)], False),
        ([resumed(20), logged(30), logged(50)], True),
        ([finished(reused=True)], False),  # another trial's work, or an earlier attempt's
        ([finished(reused=False)], True),
    ],
)
def test_an_attempt_gets_on_by_a_checkpoint_or_a_phase_of_its_own(events: list[Event], got_on: bool) -> None:
    assert fruitless(events) == [0 if got_on else 1]


def test_only_attempts_in_a_row_count() -> None:
    on, nowhere = [finished(reused=False)], [finished(reused=True)]
    assert fruitless(nowhere, nowhere, on, nowhere, nowhere, on) == [1, 2, 0, 1, 2, 0]


def test_a_checkpoint_that_cannot_be_read_is_passed_once() -> None:
    """Else a trial that always begins anew would be tried for ever."""
    again = [logged(10), logged(20), logged(30)]
    assert fruitless(again, again, again) == [0, 1, 2]
    assert fruitless(again, [*again, logged(50)]) == [0, 0]
    assert fruitless([logged(30, "baseline")], [logged(30)]) == [0, 0]


@pytest.mark.parametrize(
    ("crash", "cluster_fault"),
    [
        (None, True),
        ("rank 0: Traceback\nRuntimeError: Connection closed by peer", True),
        ("rank 0: Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.", False),
        ("rank 1: RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to", False),
        ("rank 0: MemoryError", False),
    ],
)
def test_what_needs_too_much_memory_fails_by_its_values_and_other_losses_by_the_cluster(
    crash: str | None, cluster_fault: bool
) -> None:
    attempts = Attempts(checkpoint_every=20, number=3, fruitless=2, crash=crash)
    ending = attempts.given_up()
    assert (ending.status, ending.cluster_fault) == ("FAILED", cluster_fault)
    assert ending.error is not None and ending.error.startswith("gave up after 3 attempts, the last 2 without")
    assert (crash or "killed, or the node went away") in ending.error
