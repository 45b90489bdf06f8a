"""A token leaves when it is likely enough to have left by now, by the exit head's predictions.

The exit head predicts lambda_t, the probability of leaving at step t if the token is still there. The token leaves at
the first step with 1 - prod_{s <= t} (1 - lambda_s) > quantile. The head is trained by `model.step_weights: ponder`
(PonderNet, Banino et al. 2021); leaving at a quantile instead of by chance is PALBERT's Q-exit (Balagansky and Gavrilov
2022, section 3).
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
    """A token leaves once its probability of having left is above this."""
    reads = "exit_head"
    # The product runs over all steps, those before the first possible exit included.
    looks_back = math.inf

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave at the quantile; the memory is the log-probability of still being in the network."""
        assert look.leave is not None
        # 1 - sigmoid(x) = sigmoid(-x), and -expm1(log p) = 1 - p: both without cancellation where a
        # probability is near 1.
        still_there = look.memory + (-look.leave.to(look.memory.dtype)).sigmoid().log()
        return -still_there.expm1() > self.quantile, still_there
