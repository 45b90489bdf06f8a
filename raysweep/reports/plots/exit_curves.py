"""Accuracy against FLOPs, by how tokens leave a network, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep.reports.plots.canvas import Line, draw_lines


def draw_exit_curves(content: Mapping[str, Any], path: Path) -> None:
    """Draw fixed depths, exits over their thresholds, and exits by chance after as many steps, as PNG.

    Args:
        content: a `science.pnn.exit_curves.ExitCurves` as plain data.

    Raises:
        UsageError: the file cannot be written.
    """
    points, lines = content["points"], []
    for name in dict.fromkeys(point["exit"] for point in points):
        # `none` is no exit at all: all tokens run as many steps, which makes the curve of fixed depths.
        measured = [point["reported"] for point in points if point["exit"] == name]
        lines.append(_line("fixed depth", "ks-", measured) if name == "none" else _line(name, "o-", measured))
    lines.append(_line("by chance", "x", [point["control"] for point in points if point["control"]]))
    draw_lines(
        lines,
        path,
        title=f"trained at {content['trained_steps']} steps",
        x_label="MFLOP per token, run",
        y_label="accuracy on held-out labels",
    )


def _line(label: str, style: str, measured: Sequence[Mapping[str, float]]) -> Line:
    points = [(numbers["flops_per_token"] / 1e6, numbers["accuracy"]) for numbers in measured]
    return Line(label=label, style=style, points=points)
