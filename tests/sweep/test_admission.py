"""As many trials are in hand as lanes can take; those that wait for a phase of another one stand in no lane's way."""

from __future__ import annotations

import pytest

from raysweep.sweep.admission import has_room


@pytest.mark.parametrize(
    ("in_hand", "waiting", "room"),
    [(0, 0, True), (3, 3, True), (4, 0, False), (4, 1, True), (6, 2, False), (6, 3, True), (7, 7, True), (8, 8, False)],
)
def test_four_lanes_have_room(in_hand: int, waiting: int, room: bool) -> None:
    assert has_room(in_hand, lambda: waiting, lanes=4) == room


def test_who_waits_is_not_asked_while_a_lane_is_free() -> None:
    def never() -> int:
        raise AssertionError

    assert has_room(3, never, lanes=4) and not has_room(8, never, lanes=4)
