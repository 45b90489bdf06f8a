"""Draw a head map: which heads are present, and in which cycle each was grown."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

CELL = 16  # pixels of one head in a head map, its border included
BORDER, ABSENT, ORIGINAL = (255, 255, 255), (205, 205, 205), (0, 114, 178)
GROWN = ((230, 159, 0), (204, 121, 167), (0, 158, 115), (213, 94, 0))  # Okabe-Ito: told apart by colour-blind readers
LEGEND = (
    "Rows are layers, the first on top; columns are heads. Grey: absent. Blue: original. "
    "Orange, pink, green, vermilion: grown in cycle 1, 2, 3, 4, and so on in turn."
)


@lru_cache(maxsize=64)
def head_map_png(head_map: tuple[tuple[int, ...], ...]) -> tuple[bytes, int, int]:
    """Return a head map as PNG with its height and width; cached, since most phases do not change the map."""
    cycles = np.array(head_map)
    colours = np.array([ABSENT, ORIGINAL, *GROWN], np.uint8)
    # Colours in order: absent (-1), original (0), then four for cycles of growth (1, 2, ...) that repeat in turn.
    which = np.where(cycles <= 0, cycles + 1, 2 + (cycles - 1) % len(GROWN))
    return png(Image.fromarray(squares(colours[which])))


def squares(colours: Any) -> Any:
    """Return RGB pixels (height, width, 3): a bordered square for each head of `colours` (layers, heads, 3)."""
    pixels = colours.repeat(CELL, axis=0).repeat(CELL, axis=1)
    # Every cell brings both of its edges, so that the line between two heads is two pixels wide.
    for edge in (0, CELL - 1):
        pixels[edge::CELL] = BORDER
        pixels[:, edge::CELL] = BORDER
    return pixels


def png(picture: Image.Image) -> tuple[bytes, int, int]:
    """Return a picture as PNG with its height and width."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=3)  # for squares of one colour, the fastest
    return buffer.getvalue(), picture.height, picture.width
