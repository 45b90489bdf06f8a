"""Output weights zero, values along the directions that give them the largest gradient: GradMax for heads.

Among value weights with rows of equal norm, the top right-singular vectors of M = sum_t delta_t (A x)_t^T maximise the
norm of dL/dW_O = W_V M^T at W_O = 0 (Evci et al. 2022, arXiv 2201.05125, section 3.2); A is the uniform attention that
small random query and key weights give. The function is preserved exactly. The j-th new value of a layer takes the
j-th block of head_dim directions. A head that joins a present key/value group leaves the group's value as it is, and
starts as under `zero_output`.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysweep import contracts
from raysweep.contracts import NewSlice
from raysweep.networks.plasticity.draws import fill_normal


@dataclass(frozen=True, kw_only=True)
class Initializer(contracts.Initializer):
    forms = ("gradmax",)
    needs = "directions"

    def __call__(self, new: NewSlice) -> None:
        # Directions are given for value weights alone. Biases start at zero, as in a new model.
        if new.given is not None:
            new.weights.copy_(new.given)
        elif new.role == "output" or new.weights.dim() == 1:
            new.weights.zero_()
        else:
            fill_normal(new.weights, new.std, new.generator)
