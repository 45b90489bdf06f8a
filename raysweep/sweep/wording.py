"""Put lists into messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHOWN = 5
"""How many trials, keys or processes a message lists."""


def some(things: Sequence[Any]) -> str:
    """Return the first of some things, and how many more there are."""
    more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return ", ".join(map(str, things[:SHOWN])) + more
