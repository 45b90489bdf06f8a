"""Draw the scores of heads: a heat map for each score, layers downwards, heads across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

import numpy as np

from raysweep.contracts import Slot
from raysweep.reports.plots.canvas import save

Rows = Sequence[Sequence["float | None"]]
COLUMNS = 5


def save_heat_maps(path: Path, scores: Mapping[str, Rows], masked: Sequence[Slot], title: str) -> None:
    """Write a PNG with a heat map for each score; masked heads are crossed out.

    Args:
        scores: score -> [layer][head]; None is left blank.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    first = np.array(next(iter(scores.values())), dtype=float)
    columns = min(COLUMNS, len(scores))
    rows = ceil(len(scores) / columns)
    layers, heads = first.shape
    # A panel grows with its heads and layers, so that the cells of large models stay as large as those of small ones.
    size = (columns * (1.6 + 0.16 * heads), rows * (1.2 + 0.14 * layers))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, values) in zip(panels, scores.items(), strict=False):
        image = panel.imshow(np.array(values, dtype=float), cmap=matplotlib.colormaps["viridis"], aspect="auto")
        panel.set(title=name, xlabel="head", ylabel="layer")
        for axis in (panel.xaxis, panel.yaxis):
            axis.get_major_locator().set_params(integer=True)
        for layer, head in masked:
            panel.text(head, layer, "x", color="white", ha="center", va="center")
        figure.colorbar(image, ax=panel)
    # The last row of panels may have more places than scores are left.
    for panel in panels[len(scores) :]:
        panel.set_visible(False)
    save(figure, path)
