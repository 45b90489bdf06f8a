"""Query, key and value at random, output weights zero: the function is preserved exactly, and the head is not dead.

At first only the output weights have a gradient; the others follow once these have moved (Gesmundo and Maile 2023,
arXiv 2308.06103, head addition).
"""

from __future__ import annotations

from dataclasses import dataclass

from raysweep import contracts
from raysweep.contracts import NewSlice
from raysweep.networks.plasticity.draws import fill_normal


@dataclass(frozen=True, kw_only=True)
class Initializer(contracts.Initializer):
    # The gradient of a gate is a product with the output weights: with those at zero it says nothing.
    forms = ("output", "gradmax")
    needs = "nothing"

    def __call__(self, new: NewSlice) -> None:
        # Were the other three zero as well, no gradient would ever reach the head. One dimension: a bias.
        if new.role == "output" or new.weights.dim() == 1:
            new.weights.zero_()
        else:
            fill_normal(new.weights, new.std, new.generator)
