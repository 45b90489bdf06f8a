"""Query, key and value at random, output weights zero: the function is preserved exactly, and the head is not dead.

At first only the output weights have a gradient; the others follow once these have moved (Gesmundo and Maile 2023,
arXiv 2308.06103, head addition).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from raysweep.plasticity.sites import Role

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Initializer:
    sensitivity: ClassVar[Literal["gate", "output"]] = "output"

    def __call__(self, role: Role, tensor: torch.Tensor, std: float, generator: torch.Generator) -> None:
        if role == "output" or tensor.dim() == 1:
            tensor.zero_()
        else:
            tensor.normal_(0.0, std, generator=generator)
