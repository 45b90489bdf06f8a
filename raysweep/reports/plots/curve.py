"""A loss-against-FLOPs curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw_curve(content: Mapping[str, Any], path: Path) -> None:
    """Draw per-token gates beside static pruning as PNG.

    Args:
        content: an `experiments.dynamic_heads.Curve` as plain data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = content["points"]
    _plot(axes, points, "o-", "per-token gates")
    _plot(axes, [point["static"] for point in points if point["static"]], "s--", "static Taylor pruning")
    _plot(axes, [content["full"]], "k*", "as it is")
    axes.set_xlabel("counted forward FLOPs per token, routers included")
    axes.set_ylabel("held-out loss, nats per token")
    axes.set_title(f"{content['model']} on {content['data']}")
    axes.legend()
    figure.savefig(path)


def _plot(axes: Any, points: list[Any], style: str, label: str) -> None:
    ordered = sorted(points, key=lambda point: point["flops_per_token"])
    axes.plot([p["flops_per_token"] for p in ordered], [p["loss"] for p in ordered], style, label=label)
