"""Print lists: what can be named in a job, and what the doctor found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysweep.reports.tables.parts import print_line


def print_listing(content: Mapping[str, Sequence[Mapping[str, str]]], console: Console) -> None:
    """Print names with a line about each, kind by kind."""
    for kind, entries in content.items():
        print_line(console, kind, style="bold")
        table = Table(box=None, show_header=False, pad_edge=False)
        for entry in entries:
            # As Text: "<any gpt2>" and "[...]" in a docstring are not markup.
            table.add_row(Text(f"  {entry['name']}"), Text(entry["about"]))
        console.print(table if entries else "  none yet")


def print_examination(findings: Sequence[Any], console: Console) -> None:
    """Print the checks of `raysweep doctor`, `doctor.Check` each."""
    marks = {"ok": ("✓", "green"), "note": ("!", "yellow"), "bad": ("✗", "red")}
    for finding in findings:
        text = Text.assemble(marks[finding.status], f" {finding.what}: {finding.found}")
        console.print(text, soft_wrap=True)
