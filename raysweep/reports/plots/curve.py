"""Loss against FLOPs, with per-token gates and with static pruning, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysweep.reports.plots.canvas import Line, draw_lines


def draw_curve(content: Mapping[str, Any], path: Path) -> None:
    """Draw per-token gates beside static pruning as PNG.

    Args:
        content: a `science.dynamic_heads.Curve` as plain data.

    Raises:
        UsageError: the file cannot be written.
    """
    # A point that is cheaper than any pruned model has no static one beside it.
    points = content["points"]
    draw_lines(
        [
            _line("per-token gates", "o-", points),
            _line("static Taylor pruning", "s--", [point["static"] for point in points if point["static"]]),
            _line("as it is", "k*", [content["full"]]),
        ],
        path,
        title=f"{content['model']} on {content['data']}",
        x_label="counted forward FLOPs per token, routers included",
        y_label="held-out loss, nats per token",
    )


def _line(label: str, style: str, points: list[Any]) -> Line:
    return Line(label=label, style=style, points=[(point["flops_per_token"], point["loss"]) for point in points])
