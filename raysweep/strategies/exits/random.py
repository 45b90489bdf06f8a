"""A token leaves by chance, whatever its state: the control for all other rules.

The step at which it leaves is geometrically distributed, cut off at the last step, with a given mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from scipy.optimize import brentq

from raysweep import contracts
from raysweep.job import bounds

if TYPE_CHECKING:
    import torch

    from raysweep.contracts import ExitLook


@dataclass(frozen=True, kw_only=True)
class Exit(contracts.Exit):
    mean_steps: Annotated[float, Field(ge=1, le=bounds.LAYERS)]
    """Expected steps of a token, between `min_steps` and the number of steps."""
    reads = "chance"
    looks_back = 0

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave with the same probability after each step: a truncated geometric distribution with this mean."""
        assert look.chance is not None
        # Each token has one draw for all steps, and leaves at the first step whose distribution function is
        # above it. Steps are counted from the first possible exit, which is number 1.
        possible = look.steps - look.min_steps + 1
        stay = 1 - leaving_probability(self.mean_steps - look.min_steps + 1, possible)
        left_by_now = 1 - stay ** (look.step - look.min_steps + 1)
        return look.chance < left_by_now, look.memory


ROUNDING = 1e-9
"""Relative. A mean that was measured can be below the most steps by a rounding error alone."""


@lru_cache
def leaving_probability(mean: float, most: int) -> float:
    """Return p for which min(most, G), G geometric with probability p, has the mean: (1 - (1 - p)^most) / p = mean."""
    # At the ends the solutions are p = 0, where the equation divides by 0, and p = 1, where it takes the
    # logarithm of 0.
    if mean >= most * (1 - ROUNDING):
        return 0.0
    if mean <= 1 + ROUNDING:
        return 1.0
    # 1 - (1 - p)^most by expm1 and log1p: the plain form is all rounding for p near 0. The mean falls as p
    # grows, so the interval holds exactly one root.
    return float(brentq(lambda p: -math.expm1(most * math.log1p(-p)) / p - mean, 1e-12, 1 - 1e-12))
