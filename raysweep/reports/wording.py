"""How numbers and names are put into sentences."""

from __future__ import annotations

import unicodedata

HARMLESS = "\n\t"
"""Control characters that only move on."""
STEERING = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Categories of characters that move the cursor, turn the direction of writing, or show nothing."""
JOINERS = "\u200c\u200d"
"""Characters of these categories that scripts and emoji need."""


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


def printable(text: str) -> str:
    """Return a text with every control character as its escape, such as `\\x1b`.

    Names, labels and the content of files are printed; raw, they could clear the screen, write elsewhere on it, or
    have the terminal answer as if a person typed.
    """
    if text.isprintable():
        return text
    return "".join(character if _is_harmless(character) else _escaped(character) for character in text)


def _is_harmless(character: str) -> bool:
    return character in HARMLESS or character in JOINERS or unicodedata.category(character) not in STEERING


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
