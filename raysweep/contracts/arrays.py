"""Name the shapes of arrays that rooms pass to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


Mask = npt.NDArray[np.bool_]


Slot = tuple[int, int]
"""(layer, head), by original position; never renumbered."""


Examples = npt.NDArray[Any]
"""One row of integers an example; its task knows how to read it."""
