"""How many trials a sweep has in hand at once."""

from __future__ import annotations

IN_HAND = 2
"""Trials to a lane at most; those beyond one wait for a phase that another trial is running."""


def has_room(in_hand: int, waiting: int, lanes: int) -> bool:
    """Return whether a lane could take one more trial.

    Args:
        in_hand: trials handed out that have not ended and are not paused.
        waiting: those of them that no lane could take now.
    """
    return in_hand < lanes or (in_hand < IN_HAND * lanes and in_hand - waiting < lanes)
