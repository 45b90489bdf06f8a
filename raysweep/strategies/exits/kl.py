"""A token leaves when what is predicted changes by little: KL(p_t || p_{t-1}) (Huginn, Geiping et al. 2025).

"Scaling up Test-Time Compute with Latent Reasoning: A Recurrent Depth Approach", arXiv 2502.05171.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raysweep import contracts
from raysweep.job import bounds

if TYPE_CHECKING:
    import torch

    from raysweep.contracts import ExitLook


@dataclass(frozen=True, kw_only=True)
class Exit(contracts.Exit):
    divergence: Annotated[float, Field(gt=0, le=bounds.NATS)]
    """Nats below which a token leaves. Two predictions are needed, so the first comparison is after step 2."""
    reads = "predictions"
    looks_back = 1

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        assert look.logits is not None
        # The first look has nothing to compare with: no token leaves. `memory` is all zeros, so as booleans
        # it is false.
        if look.logits_before is None:
            return look.memory.bool(), look.memory
        # In single precision: differences of logarithms would drown in the rounding of half precision.
        now, before = look.logits.float().log_softmax(-1), look.logits_before.float().log_softmax(-1)
        return (now.exp() * (now - before)).sum(-1) < self.divergence, look.memory
