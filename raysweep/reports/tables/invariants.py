"""Print the invariants of a sweep, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from raysweep.reports.tables.parts import print_line
from raysweep.reports.wording import count


def print_invariants(found: Mapping[str, Any], console: Console) -> None:
    """Print how far a sweep has come, and for each invariant whether it holds, or what breaks it."""
    # An open trial has written a part of its records: whether they are whole can be said when it has ended.
    still = len(found["open"])
    open_trials = f", {still} open and not checked yet" if still else ""
    running = ", still running" if found["running"] else ""
    head = f"{found['sweep']}   {found['ended']} of {count(found['planned'], 'trial')} ended{open_trials}{running}"
    print_line(console, head)
    for invariant, broken in found["invariants"].items():
        mark, style = ("✗", "red") if broken else ("✓", "green")
        console.print(Text.assemble((mark, style), f" {invariant}"), soft_wrap=True)
        for fault in broken:
            print_line(console, f"    {fault}")
    faults = sum(map(len, found["invariants"].values()))
    print_line(console, "all hold." if not faults else f"{count(faults, 'fault')} found.")
