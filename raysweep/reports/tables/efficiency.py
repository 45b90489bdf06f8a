"""Print what a network costs beside its baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from raysweep.reports.tables.parts import empty_table, print_line

EQUAL_IN = {"training_flops": "training FLOPs", "trunk": "parameters of the trunk"}


def print_efficiency(content: Mapping[str, Any], console: Console) -> None:
    """Print a line for each network, then the baselines that cost as much as the first one."""
    console.print(_costs(content["rows"]))
    print_line(console, "the nearest that a baseline comes to the cost of this model:")
    console.print(_matches(content["matches"]))


def _costs(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    # Its row is named after its number of layers, too.
    reference = rows[next(name for name in rows if name.startswith("BERT"))]
    numbers = (
        "parameters",
        "vocabulary",
        "trunk",
        "MFLOP/token",
        "in training",
        "parameters / BERT",
        "training / BERT",
    )
    table = empty_table(["", *numbers], right=numbers)
    # MFLOP for each token: forward passes at inference, and all of a training step.
    for name, cost in rows.items():
        table.add_row(
            name,
            *(f"{cost[part]:,}" for part in ("parameters", "vocabulary", "trunk")),
            *(f"{cost[part] / 1e6:.2f}" for part in ("forward_flops", "training_flops")),
            *(f"{cost[part] / reference[part]:.1%}" for part in ("parameters", "training_flops")),
        )
    return table


def _matches(matches: list[Mapping[str, Any]]) -> Table:
    numbers = ("steps", "feed-forward width", "off by")
    table = empty_table(["equal in", "baseline", *numbers], right=numbers)
    for match in matches:
        shape = (f"{match['num_steps']}", f"{match['intermediate_size']:,}", f"{match['off']:+.1%}")
        table.add_row(EQUAL_IN[match["equal_in"]], match["baseline"], *shape)
    return table
