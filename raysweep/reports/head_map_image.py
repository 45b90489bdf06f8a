"""A head map as a picture: which heads are there, and when each was grown."""

from __future__ import annotations

import io
from collections.abc import Sequence
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
    """Return the map as a picture, its height and its width; most phases leave the map as it was."""
    pixels = _head_map_pixels(head_map)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue(), pixels.shape[0], pixels.shape[1]


def _head_map_pixels(head_map: Sequence[Sequence[int]]) -> Any:
    """Return the map as RGB pixels (height, width, 3): one bordered square per head."""
    cycles = np.array(head_map)
    colours = np.array([ABSENT, ORIGINAL, *GROWN], np.uint8)
    which = np.where(cycles <= 0, cycles + 1, 2 + (cycles - 1) % len(GROWN))
    pixels = colours[which].repeat(CELL, axis=0).repeat(CELL, axis=1)
    for edge in (0, CELL - 1):
        pixels[edge::CELL] = BORDER
        pixels[:, edge::CELL] = BORDER
    return pixels
