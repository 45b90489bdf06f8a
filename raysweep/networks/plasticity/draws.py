"""Random weights that are the same on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fill_normal(weights: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Fill a tensor, a view too, with N(0, std^2), drawn in its own precision on the processor."""
    weights.copy_(weights.new_empty(weights.shape, device="cpu").normal_(0.0, std, generator=generator))
