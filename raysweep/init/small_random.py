"""All four matrices small and random: perturbs the function a little, gradients flow everywhere at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from raysweep.plasticity.sites import Role

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Initializer:
    sensitivity: ClassVar[Literal["gate", "output"]] = "gate"

    def __call__(self, role: Role, tensor: torch.Tensor, std: float, generator: torch.Generator) -> None:
        if tensor.dim() == 1:
            tensor.zero_()
        else:
            tensor.normal_(0.0, std, generator=generator)
