"""A token leaves by chance, whatever its state: the control for rules that look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from scipy.optimize import brentq

from raysweep import contracts

if TYPE_CHECKING:
    import torch

    from raysweep.contracts import ExitLook


@dataclass(frozen=True, kw_only=True)
class Exit(contracts.Exit):
    mean_steps: Annotated[float, Field(ge=1)]
    """Expected steps of a token, between the fewest and the most."""
    reads = "chance"
    looks_back = 0

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave with the same probability after each step, so that nothing but their mean says when."""
        assert look.chance is not None
        possible = look.steps - look.min_steps + 1
        stay = 1 - leaving_probability(self.mean_steps - look.min_steps + 1, possible)
        left_by_now = 1 - stay ** (look.step - look.min_steps + 1)
        return look.chance < left_by_now, look.memory


ROUNDING = 1e-9
"""Relative; a mean that was measured may be short of the most by less."""


@lru_cache
def leaving_probability(mean: float, most: int) -> float:
    """Return p for which the smaller of `most` and a geometric variable of p has a mean: (1 - (1 - p)^most) / p."""
    if mean >= most * (1 - ROUNDING):
        return 0.0
    if mean <= 1 + ROUNDING:
        return 1.0
    return float(brentq(lambda p: -math.expm1(most * math.log1p(-p)) / p - mean, 1e-12, 1 - 1e-12))
