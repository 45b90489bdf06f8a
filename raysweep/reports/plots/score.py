"""Draw a score of every head: a heat map below its name and its scale. Without matplotlib, in milliseconds."""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raysweep.reports.plots.head_map import ABSENT, BORDER, png, squares

TITLE = 16  # pixels of the line above the heads
VIRIDIS = np.array(  # nine of matplotlib's colours: even steps to the eye, told apart by colour-blind readers
    [(68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140),
     (40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37)]
)  # fmt: skip
LEGEND = (
    "Rows are layers, the first on top; columns are heads. From violet, the lowest, to yellow, the highest: the title "
    "says which they are in this cycle. Grey: absent."
)


def score_png(name: str, scores: Any) -> tuple[bytes, int, int]:
    """Return a score as PNG with its height and width.

    Args:
        scores: (layers, heads), NaN where a head is absent; at least one is present.
    """
    low, high = np.nanmin(scores), np.nanmax(scores)
    pixels = squares(_colours(scores, low, high))
    title = f"{name}  {low:.3g} .. {high:.3g}"
    height, width = pixels.shape[:2]
    font = _font()
    # A model with few heads is narrower than the title of its picture.
    picture = Image.new("RGB", (max(width, ceil(font.getlength(title)) + 4), TITLE + height), BORDER)
    ImageDraw.Draw(picture).text((2, 2), title, fill=(0, 0, 0), font=font)
    picture.paste(Image.fromarray(pixels), (0, TITLE))
    return png(picture)


@cache
def _font() -> Any:
    return ImageFont.load_default()


def _colours(scores: Any, low: float, high: float) -> Any:
    """Return RGB (layers, heads, 3); equal scores all get the middle of the scale."""
    # Equal scores have no scale to divide by; NaN stays NaN, and becomes grey below.
    share = (scores - low) / (high - low) if high > low else np.where(np.isnan(scores), np.nan, 0.5)
    marks = np.linspace(0, 1, len(VIRIDIS))
    colours = np.stack([np.interp(share, marks, channel) for channel in VIRIDIS.T], axis=-1)
    return np.where(np.isnan(scores)[..., None], ABSENT, colours.round()).astype(np.uint8)
