"""How many trials a sweep has in hand at once."""

from __future__ import annotations

from collections.abc import Callable

IN_HAND = 2
"""Trials to a lane at most; those beyond one stand for trials that wait for a phase of another trial."""


def has_room(in_hand: int, waiting: Callable[[], int], lanes: int) -> bool:
    """Return whether a lane could take one more trial.

    Args:
        in_hand: trials handed out that have not ended and are not paused.
        waiting: returns how many of them no lane could take now; asked only where it matters.
    """
    return in_hand < lanes or (in_hand < IN_HAND * lanes and in_hand - waiting() < lanes)
