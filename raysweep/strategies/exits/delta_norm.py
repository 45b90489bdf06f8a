"""A token leaves when a step changes its state by little: |h_t - h_{t-1}| / |h_{t-1}|."""

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
    threshold: Annotated[float, Field(gt=0, le=bounds.NORM)]
    """Relative change below which a token leaves."""
    reads = "states"
    looks_back = 0

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        # Norms over the width, one a token. A relative change means the same whatever the scale of the states.
        change = (look.after - look.before).norm(dim=1) / look.before.norm(dim=1)
        return change < self.threshold, look.memory
