"""Draw random weights that are the same on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fill_normal(weights: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Fill a tensor, or a view of one, with N(0, std^2), drawn in its own precision on the CPU."""
    # Generators of different devices draw different numbers from one seed; drawing on the CPU gives the same
    # everywhere.
    weights.copy_(weights.new_empty(weights.shape, device="cpu").normal_(0.0, std, generator=generator))
