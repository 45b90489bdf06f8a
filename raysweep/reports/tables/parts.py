"""Share what tables need: empty tables, lines of text, and values as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

COSTS = ("params", "MFLOP/token")


def empty_table(headings: Iterable[str], right: Collection[str]) -> Table:
    """Return a table without rows; the columns in `right` hold numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        # Folded, not cut: a cell that does not fit goes on in the next line, and nothing is lost.
        table.add_column(Text(heading), justify="right" if heading in right else "left", overflow="fold")
    return table


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: without markup, without colours of Rich's own, without line breaks."""
    console.print(Text(text, style=style), soft_wrap=True)


def show_value(value: Any) -> str:
    """Write a value as it stands in YAML, rounded."""
    # As YAML spells them, so that what is printed can be pasted into a job; f"{True}" would be "True".
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
