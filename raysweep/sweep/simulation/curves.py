"""Losses and durations of simulated phases.

Both follow from a phase's key and from the model that it begins with, as in real phases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from raysweep.contracts import Slot
from raysweep.job.plan import PhasePlan, derived_seed
from raysweep.networks.plasticity.head_map import HeadMap

SHAPE = (6, 8)
"""Layers and heads of the simulated model, whatever model the job names."""
NUM_PARAMETERS = 100_000_000
DENSE_FLOPS = 2.0e8
"""Forward floating-point operations a token with every head present."""
SHARE_OF_HEADS = 1 / 3
"""Share of these operations, and of the parameters, that all heads together make up."""
FLOPS_PER_SECOND = 1.0e13
"""Speed of a worker group."""
PROBE_SECONDS = 3.0
"""Duration of a phase without training."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A simulated model: everything that its next phase depends on."""

    heads: HeadMap
    loss: float
    removed: tuple[Slot, ...] = ()
    """Heads that this cycle removed."""
    source: int | None = None
    """Index of the recorded trial whose losses it follows."""

    @property
    def absent(self) -> float:
        """Share of the heads that are absent."""
        return 1 - self.heads.active / self.heads.present.size


class Curves(Protocol):
    """A source of losses and durations."""

    def begin(self, phase: PhasePlan, before: Model | None) -> Model:
        """Return the model that a phase begins with.

        Args:
            before: the model after the previous phase; None: a new or a pretrained one.
        """

    def loss(self, phase: PhasePlan, before: Model, after: Model, share: float) -> float:
        """Return the held-out loss at a share of a phase's steps; it is not finite if the phase diverged.

        Args:
            after: the model with the heads that the phase leaves. Its loss is not known yet.
            share: 1 for a phase without steps.
        """

    def seconds(self, phase: PhasePlan, before: Model, flops: float) -> float:
        """Return the duration of a whole phase.

        Args:
            flops: floating-point operations of its training.
        """


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """Made-up curves: damage grows faster than the share of removed heads, and training undoes it."""

    diverging: float = 0.003
    """Share of training phases whose loss becomes infinite half-way through."""

    def begin(self, phase: PhasePlan, before: Model | None) -> Model:
        return before or Model(heads=HeadMap.full(*SHAPE), loss=10.0 if phase.steps else 3.0)

    def loss(self, phase: PhasePlan, before: Model, after: Model, share: float) -> float:
        if not phase.steps:
            # Only removal changes the loss here. Strategies differ by a fixed skill, so that a search finds something.
            removed = max(0.0, after.absent - before.absent)
            skill = uniform(str(phase.params.get("strategy")), "skill")
            return before.loss + 4 * removed**1.5 * (1.5 - skill)
        if share > 0.5 and uniform(phase.key, "fate") < self.diverging:
            return math.inf
        # An exponential decay towards a floor that is higher the more heads are absent.
        floor = 3 + 0.8 * after.absent**1.5 + 0.2 * uniform(phase.key, "floor")
        pace = 2 + 3 * uniform(phase.key, "pace")
        return floor + (before.loss - floor) * math.exp(-pace * share)

    def seconds(self, phase: PhasePlan, before: Model, flops: float) -> float:
        return flops / FLOPS_PER_SECOND if phase.steps else PROBE_SECONDS


def uniform(*what: str) -> float:
    """Return a deterministic uniform number in [0, 1), seeded by `what`."""
    # derived_seed has 56 bits.
    return derived_seed(*what) / 2**56
