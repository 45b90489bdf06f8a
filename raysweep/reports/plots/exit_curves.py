"""Accuracy against FLOPs, by how tokens leave a network, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_exit_curves(content: Mapping[str, Any], path: Path) -> None:
    """Draw fixed depths, exits over their thresholds, and exits by chance after as many steps, as PNG.

    Args:
        content: an `experiments.pnn_exits.ExitCurves` as plain data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = content["points"]
    for name in dict.fromkeys(point["exit"] for point in points):
        measured = [point["reported"] for point in points if point["exit"] == name]
        _plot(axes, measured, "ks-" if name == "none" else "o-", "fixed depth" if name == "none" else name)
    _plot(axes, [point["control"] for point in points if point["control"]], "x", "by chance")
    axes.set_xlabel("MFLOP per token, run")
    axes.set_ylabel("accuracy on held-out labels")
    axes.set_title(f"trained at {content['trained_steps']} steps")
    axes.legend()
    figure.savefig(path)


def _plot(axes: Any, measured: Sequence[Mapping[str, float]], style: str, label: str) -> None:
    ordered = sorted(measured, key=lambda numbers: numbers["flops_per_token"])
    axes.plot([n["flops_per_token"] / 1e6 for n in ordered], [n["accuracy"] for n in ordered], style, label=label)
