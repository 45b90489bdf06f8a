"""A token leaves when its prediction has stayed the same (PABEE, Zhou et al. 2020).

"BERT Loses Patience: Fast and Robust Inference with Early Exit", arXiv 2006.04152.
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
    patience: Annotated[int, Field(ge=1, le=bounds.LAYERS)] = 1
    """How often in a row the largest logit must stay the same from one step to the next."""
    reads = "predictions"

    @property
    def looks_back(self) -> float:
        # So many repetitions can then be complete at the first possible exit.
        return self.patience

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        assert look.logits is not None
        # The first look has nothing to compare with. `memory` counts
        # repetitions, so it is zero, and false as booleans.
        if look.logits_before is None:
            return look.memory.bool(), look.memory
        repeated = look.logits.argmax(-1) == look.logits_before.argmax(-1)
        # Times a boolean: a prediction that changes sets the count back to 0.
        in_a_row = (look.memory + 1) * repeated
        return in_a_row >= self.patience, in_a_row
