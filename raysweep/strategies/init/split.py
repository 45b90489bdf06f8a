"""Split a present head in two: the child copies query, key and value, and both share the output weights.

Both heads have equal outputs, so any two output weights that add up to W_O preserve the function exactly: W_O / 2 - e
for the donor, W_O / 2 + e for the child (Net2Net's widening, Chen et al. 2016, arXiv 1511.05641, section 2.2, for
heads). The noise e breaks the symmetry: without it the two would have equal gradients for ever.

The donor keeps its optimizer moments. The gradient of its output weights stays as it was; those of its query, key and
value are halved, so its first updates are smaller, never larger, until the second moment has adapted. The child's
moments begin as those of every new head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import NewSlice
from raysweep.job import bounds
from raysweep.networks.plasticity.draws import fill_normal


@dataclass(frozen=True, kw_only=True)
class Initializer(contracts.Initializer):
    # A closed gate has a gradient only if the output weights are not zero, and here they are half of the donor's.
    forms = ("gate",)
    needs = "donor"

    noise: Annotated[float, Field(gt=0, le=bounds.NATS)] = 0.5
    """Standard deviation of e, in units of the model's initializer range."""

    def __call__(self, new: NewSlice) -> None:
        assert new.given is not None
        if new.role != "output":
            new.weights.copy_(new.given)
            return
        # The child's slice holds the noise until the donor's has taken it off: no third tensor is needed.
        # `given` is a view of the donor's weights, so this changes the donor.
        fill_normal(new.weights, self.noise * new.std, new.generator)
        half = new.given / 2
        new.given.copy_(half - new.weights)
        new.weights.add_(half)
