"""A token leaves when its likeliest class is likely enough (CALM, Schuster et al. 2022).

Their softmax-based confidence takes the difference of the two largest probabilities; this is the plain maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raysweep import contracts

if TYPE_CHECKING:
    import torch

    from raysweep.contracts import ExitLook


@dataclass(frozen=True, kw_only=True)
class Exit(contracts.Exit):
    probability: Annotated[float, Field(gt=0, lt=1)]
    """Probability of the likeliest class from which on a token leaves."""
    reads = "predictions"
    looks_back = 0

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        assert look.logits is not None
        return look.logits.float().softmax(-1).amax(-1) >= self.probability, look.memory
