"""What tables share: empty tables, lines of text, and how a value is shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

COSTS = ("params", "MFLOP/token")


def empty_table(headings: Iterable[str], right: Collection[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), justify="right" if heading in right else "left", overflow="fold")
    return table


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: no markup, no colours of Rich's own, no breaks."""
    console.print(Text(text, style=style), soft_wrap=True)


def show_value(value: Any) -> str:
    """Write a value as it stands in YAML, rounded."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
