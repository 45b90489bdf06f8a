"""Who is silent for too long is found, whoever is not is left in peace, and nobody is blamed for the clock's gaps."""

from __future__ import annotations

import pytest

from raysweep.sweep.heartbeats import GAP_S, LOADING, NOTICE, STARTING_S, Heartbeats, Silence

TIMEOUT_S = 100.0


@pytest.fixture
def hearts() -> Heartbeats:
    return Heartbeats(timeout_s=TIMEOUT_S)


def look_until(hearts: Heartbeats, end: float, begin: float = 0.0) -> list[tuple[float, Silence]]:
    """Look every second; return what was found, and when."""
    found = []
    for second in range(int(begin), int(end) + 1):
        found += [(float(second), silence) for silence in hearts.look(float(second))]
    return found


def test_a_lane_at_work_is_noticed_and_then_given_up_once(hearts: Heartbeats) -> None:
    hearts.beat("lane-0", 0.0)
    noticed, lost = look_until(hearts, 10 * TIMEOUT_S)
    assert noticed == (21.0, Silence(name="lane-0", seconds=21.0, overdue=False)) and NOTICE * TIMEOUT_S == 20.0
    assert lost == (101.0, Silence(name="lane-0", seconds=101.0, overdue=True))
    assert not hearts.expects("lane-0")


def test_who_loads_has_longer(hearts: Heartbeats) -> None:
    hearts.beat("lane-0", 0.0, loading=True)
    *_, (second, lost) = look_until(hearts, 10 * TIMEOUT_S)
    assert (second, lost.overdue) == (LOADING * TIMEOUT_S + 1, True)
    hearts.beat("lane-0", 0.0, starting=True)
    assert LOADING * TIMEOUT_S < STARTING_S
    assert [second for second, silence in look_until(hearts, 2 * STARTING_S) if silence.overdue] == [STARTING_S + 1]


def test_a_beat_ends_a_silence_and_says_so(hearts: Heartbeats) -> None:
    hearts.beat("lane-0", 0.0)
    assert len(look_until(hearts, 50.0)) == 1
    assert hearts.beat("lane-0", 50.0)
    assert not hearts.beat("lane-0", 51.0)
    assert look_until(hearts, 70.0, begin=51.0) == []
    assert len(look_until(hearts, 80.0, begin=71.0)) == 1, "a new silence is told of again"


def test_the_others_are_left_in_peace(hearts: Heartbeats) -> None:
    for second in range(300):
        hearts.beat("lane-1", float(second))
        if second == 0:
            hearts.beat("lane-0", 0.0)
        assert {silence.name for silence in hearts.look(float(second))} <= {"lane-0"}
    assert hearts.expects("lane-1")


def test_who_returned_is_not_expected(hearts: Heartbeats) -> None:
    hearts.beat("lane-0", 0.0)
    hearts.forget("lane-0")
    assert look_until(hearts, 1000.0) == []


def test_nobody_is_blamed_while_the_one_who_looks_stood_still(hearts: Heartbeats) -> None:
    hearts.beat("lane-0", 0.0)
    assert look_until(hearts, 10.0) == []
    assert hearts.look(10.0 + 5000.0) == []  # stopped, or its machine was asleep
    found = look_until(hearts, 5200.0, begin=5011.0)
    assert [silence.overdue for _, silence in found] == [False, True]
    assert found[1][0] == 5101.0, "what it was silent before still counts"


def test_a_gap_is_longer_than_a_late_look() -> None:
    assert GAP_S > 2.0
