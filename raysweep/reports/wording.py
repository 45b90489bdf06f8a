"""How numbers are put into sentences."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Write a number with its noun: 1 trial, 2 trials."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def silent_lane(lane: str, seconds: float) -> str:
    """Say that a lane gives no sign of life."""
    return f"{lane.replace('-', ' ')} silent for {seconds:.0f} s"


def duration(seconds: float) -> str:
    """Write a duration in the unit that a person would use."""
    # The limits lie above 60 s and 60 min, since "75 s" says more than "1 min".
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
