"""Rungs of early stopping: shares of a trial's judged compute (`Report.share`) at which trials are compared."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

Reduction = Annotated[float, Field(gt=1, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
ROUNDING = 1e-9
"""Shares are sums of floating-point numbers: so far below a rung is on it."""


def rungs_from(first: float, reduction: float) -> tuple[float, ...]:
    """Return first, first * reduction, and so on, as far as they are below 1, which is the end anyway."""
    rungs = [first]
    while rungs[-1] * reduction < 1 - ROUNDING:
        rungs.append(rungs[-1] * reduction)
    return tuple(rungs)


def is_reached(rung: float, share: float) -> bool:
    return share >= rung * (1 - ROUNDING)


def num_best(count: int, reduction: float) -> int:
    """Return how many of so many trials go on: 1/reduction of them, rounded down, but at least one."""
    return max(1, math.floor(count / reduction + ROUNDING))
