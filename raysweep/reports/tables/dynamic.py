"""Print per-token head gates beside static pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from raysweep.reports.tables.parts import print_line


def print_curve(content: Mapping[str, Any], console: Console) -> None:
    """Print a row for each penalty, with static pruning at no more FLOPs beside it, and what gates cost here.

    Args:
        content: a `science.dynamic_heads.Curve` as plain data.
    """
    full, seconds = content["full"], content["seconds_per_token"]
    table = Table("penalty", "open", "FLOPs", "loss", "static FLOPs", "static heads", "static loss", box=None)
    table.add_row("(as it is)", "100%", "100%", f"{full['loss']:.4f}", "", str(full["heads"]), "")
    for point in content["points"]:
        # None: no pruned model is as cheap as this point.
        static = point["static"]
        beside = ("", "", "") if static is None else (
            f"{static['flops_per_token'] / full['flops_per_token']:.1%}", str(static["heads"]), f"{static['loss']:.4f}"
        )  # fmt: skip
        table.add_row(
            f"{point['penalty']:g}", f"{point['open_share']:.1%}",
            f"{point['flops_per_token'] / full['flops_per_token']:.1%}", f"{point['loss']:.4f}", *beside,
        )  # fmt: skip
    console.print(table)
    # Both are said, so that nobody takes the saved FLOPs for a model that is faster today.
    note = (
        "FLOPs are counted: a closed head saves its query, its output and its attention products, not keys and values."
    )
    print_line(console, note)
    print_line(
        console,
        "Here closed heads are computed and multiplied by zero, so nothing is faster: "
        f"{seconds['gated'] * 1e6:.3g} us a token, against {seconds['plain'] * 1e6:.3g} without gates.",
    )
