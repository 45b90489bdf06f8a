"""Decide whether a sweep hands out one more trial now."""

from __future__ import annotations

from collections.abc import Callable

IN_HAND = 2
"""Trials per lane that may be handed out at most. One of them runs; another may wait for a phase of a third trial."""


def has_room(in_hand: int, waiting: Callable[[], int], lanes: int) -> bool:
    """Return whether a lane could run one more trial.

    Args:
        in_hand: trials handed out that have not ended and are not paused.
        waiting: returns how many of them no lane could run now. On a cluster it is a call to the mailbox, so it is
            called only where the answer depends on it.
    """
    # Trials are proposed as late as possible, since each result helps the sampler. But a lane must not stand idle
    # because all trials in hand wait for one phase; how many extra ones may wait for that is bounded by IN_HAND.
    return in_hand < lanes or (in_hand < IN_HAND * lanes and in_hand - waiting() < lanes)
