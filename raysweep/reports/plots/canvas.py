"""Write figures as PNG files, and draw the simple ones: lines over one axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points that a plot joins in the order of x."""

    label: str
    style: str
    """Marker and line as matplotlib writes them, such as `o-`."""
    points: Iterable[tuple[float, float]]


def draw_lines(lines: Sequence[Line], path: Path, *, title: str, x_label: str, y_label: str) -> None:
    """Draw lines with a legend as PNG.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for line in lines:
        points = sorted(line.points, key=lambda point: point[0])
        axes.plot([x for x, _ in points], [y for _, y in points], line.style, label=line.label)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.legend()
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # This canvas draws without a display. Through pyplot, a figure would get that of the backend in the user's
    # matplotlibrc, which may need one, and would be kept until it is closed.
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, format="png", dpi=figure.dpi)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
