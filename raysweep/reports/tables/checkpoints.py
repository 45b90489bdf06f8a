"""Print which checkpoints of a sweep are needed, and which are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from raysweep.reports.tables.parts import print_line
from raysweep.reports.wording import count


def print_checkpoints(content: Mapping[str, Any], console: Console) -> None:
    """Print the checkpoints that `raysweep gc` removes, and how much that frees; the same content as the JSON."""
    kept, size = content["kept"], _bytes(content["bytes_kept"])
    if not content["collected"]:
        print_line(console, f"Nothing to free: {_all_of(len(kept), size)}.")
        return
    table = Table("phase", "trials", "size", "why", box=None)
    for entry in content["collected"]:
        table.add_row(entry["phase"], ", ".join(map(str, entry["trials"])), _bytes(entry["bytes"]), entry["why"])
    console.print(table)
    freed = f"{_bytes(content['bytes_collected'])} {'would be freed' if content['dry_run'] else 'freed'}"
    stay = f"{count(len(kept), 'checkpoint')} {'stays' if len(kept) == 1 else 'stay'}"
    print_line(console, f"{freed}, {size} in {stay}.")


def _all_of(number: int, size: str) -> str:
    if number == 0:  # no trial has finished a phase, or all was removed by hand
        return "the sweep has no checkpoints"
    if number == 1:
        return f"its only checkpoint ({size}) is still needed"
    return f"all {number} checkpoints ({size}) are still needed"


def _bytes(number: int) -> str:
    """Write a size in decimal units, as budget.disk_gb counts."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
