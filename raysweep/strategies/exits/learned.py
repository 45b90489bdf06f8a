"""A token leaves when it is likely enough to have left by now, as the exit head says.

The head is trained by `model.step_weights: ponder` (PonderNet, Banino et al. 2021); leaving at a quantile instead of by
chance is PALBERT's Q-exit (Balagansky and Gavrilov 2022, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raysweep import contracts

if TYPE_CHECKING:
    import torch

    from raysweep.contracts import ExitLook


@dataclass(frozen=True, kw_only=True)
class Exit(contracts.Exit):
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability of having left, beyond which it leaves."""
    reads = "exit_head"
    looks_back = math.inf

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        """Remember the log-probability of being there still."""
        assert look.leave is not None
        still_there = look.memory + (-look.leave.to(look.memory.dtype)).sigmoid().log()
        return -still_there.expm1() > self.quantile, still_there
