"""Names for the types of arrays that rooms pass to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Double precision, as the sums over batches and ranks that most of these arrays come from.
Array = npt.NDArray[np.float64]


Mask = npt.NDArray[np.bool_]


Slot = tuple[int, int]
"""(layer, head), by original position; pruning other heads never renumbers it."""


Examples = npt.NDArray[Any]
"""One row of integers for each example; its task knows how to read it."""
