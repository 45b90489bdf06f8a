"""A token leaves when its prediction has stayed the same (PABEE, Zhou et al. 2020)."""

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
    patience: Annotated[int, Field(ge=1)] = 1
    """Times in a row that the largest logit must repeat itself; first looked at after step 1."""
    reads = "predictions"

    @property
    def looks_back(self) -> float:
        return self.patience

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        assert look.logits is not None
        if look.logits_before is None:
            return look.memory.bool(), look.memory
        repeated = look.logits.argmax(-1) == look.logits_before.argmax(-1)
        in_a_row = (look.memory + 1) * repeated
        return in_a_row >= self.patience, in_a_row
