"""All four matrices small and random: perturbs the function a little, gradients flow everywhere at once.

Weights are drawn from N(0, s^2), s the model's own initializer range; biases are zero. So a model begins, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysweep import contracts
from raysweep.contracts import NewSlice
from raysweep.networks.plasticity.draws import fill_normal


@dataclass(frozen=True, kw_only=True)
class Initializer(contracts.Initializer):
    forms = ("gate",)
    needs = "nothing"

    def __call__(self, new: NewSlice) -> None:
        # One dimension: a bias.
        if new.weights.dim() == 1:
            new.weights.zero_()
        else:
            fill_normal(new.weights, new.std, new.generator)
