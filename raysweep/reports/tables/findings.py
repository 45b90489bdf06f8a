"""Print and draw what analyses of a Plastic Neural Network found: a table, and a picture for each analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.reports.plots.canvas import save


def print_findings(found: Sequence[Mapping[str, Any]], console: Any) -> None:
    """Print a row for each analysis, given as `Finding.to_dict()`."""
    from rich.table import Table

    table = Table("analysis", "effects found", "verdict", box=None)
    for content in found:
        if "not_applicable" in content:
            table.add_row(content["experiment"], "", f"not applicable: {content['not_applicable']}")
            continue
        tested = content["comparisons"]
        effects = sum(comparison["found"] for comparison in tested)
        table.add_row(content["experiment"], f"{effects} of {len(tested)}", content["verdict"])
    console.print(table)


def draw_finding(content: Mapping[str, Any], path: Path) -> None:
    """Draw the panels of one analysis, given as `Finding.to_dict()`, side by side as PNG.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels = content["panels"]
    figure = Figure(figsize=(5 * len(panels), 4.2), dpi=100, layout="constrained")
    figure.suptitle(content["experiment"])
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        {"lines": _lines, "bars": _bars, "heat_map": _heat_map}[panel["kind"]](axes, panel["series"])
        # The level is what a null model gives: what lies on it was not found.
        if panel["level"] is not None:
            axes.axhline(panel["level"], color="gray", linestyle=":", linewidth=1)
        axes.set(title=panel["title"], xlabel=panel["x_label"], ylabel=panel["y_label"])
    save(figure, path)


def _lines(axes: Any, series: Sequence[Mapping[str, Any]]) -> None:
    for one in series:
        x = range(len(one["y"])) if one["x"] is None else one["x"]
        [line] = axes.plot(x, one["y"], "o-", markersize=3, label=one["name"])
        if one["low"] is not None:
            axes.fill_between(x, one["low"], one["high"], color=line.get_color(), alpha=0.2, linewidth=0)
    # Steps, layers and ranks are counted: a tick at 1.5 would name none.
    axes.xaxis.get_major_locator().set_params(integer=True)
    _name(axes, series)


def _bars(axes: Any, series: Sequence[Mapping[str, Any]]) -> None:
    width = 0.8 / len(series)
    for number, one in enumerate(series):
        y = np.array(one["y"], float)
        # The bars of one place stand side by side, and the middle of the group on its tick.
        places = np.arange(len(y)) + (number - (len(series) - 1) / 2) * width
        # matplotlib wants the lengths of both arms, not where they end.
        margins = None if one["low"] is None else np.abs(np.array([one["low"], one["high"]], float) - y)
        axes.bar(places, y, width, yerr=margins, label=one["name"], error_kw={"linewidth": 0.8})
    names = series[0]["x"]
    if names is not None:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    _name(axes, series)


def _heat_map(axes: Any, series: Sequence[Mapping[str, Any]]) -> None:
    [one] = series  # a heat map shows one matrix
    image = axes.imshow(np.array(one["y"], float), aspect="auto", cmap="viridis")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    if one["x"] is not None:
        axes.set_xticks(range(len(one["x"])), one["x"])
    if one["rows"] is not None:
        axes.set_yticks(range(len(one["rows"])), one["rows"])
    axes.figure.colorbar(image, ax=axes, label=one["name"])


def _name(axes: Any, series: Sequence[Mapping[str, Any]]) -> None:
    if len(series) > 1:  # a single series is named by the panel's title
        axes.legend(fontsize=7)
