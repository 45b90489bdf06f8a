"""How the losses of simulated trials go, and what their phases take.

All of it follows from a phase's key and from the model that it begins with, as in real phases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from raysweep.contracts import Slot
from raysweep.job.plan import PhasePlan, derived_seed
from raysweep.networks.plasticity.head_map import HeadMap

SHAPE = (6, 8)
"""Layers and heads of the model that stands for the job's, whatever that is."""
NUM_PARAMETERS = 100_000_000
DENSE_FLOPS = 2.0e8
"""Forward floating-point operations a token with every head."""
SHARE_OF_HEADS = 1 / 3
"""Of these operations, and of the parameters."""
FLOPS_PER_SECOND = 1.0e13
"""Of a worker group."""
PROBE_SECONDS = 3.0
"""What a phase without training takes."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A simulated model: all that its next phase follows from."""

    heads: HeadMap
    loss: float
    removed: tuple[Slot, ...] = ()
    """Heads that this cycle removed."""
    source: int | None = None
    """Number of the recorded trial whose losses it follows."""

    @property
    def absent(self) -> float:
        """Share of its heads that are absent."""
        return 1 - self.heads.active / self.heads.present.size


class Curves(Protocol):
    """Where losses and times come from."""

    def begin(self, phase: PhasePlan, before: Model | None) -> Model:
        """Return the model that a phase begins with; `before` None: a new one, or as it was pretrained."""

    def loss(self, phase: PhasePlan, before: Model, after: Model, share: float) -> float:
        """Return the held-out loss at a share of a phase's steps, at 1 for one without; not finite: it diverged.

        Args:
            after: with the heads that the phase leaves; its loss is not known yet.
        """

    def seconds(self, phase: PhasePlan, before: Model, flops: float) -> float:
        """Return what a whole phase takes; `flops` is what its training does."""


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """Made up, of a plausible form: damage grows faster than the share of heads removed, and training undoes it."""

    diverging: float = 0.003
    """Share of training phases whose loss becomes infinite half-way."""

    def begin(self, phase: PhasePlan, before: Model | None) -> Model:
        return before or Model(heads=HeadMap.full(*SHAPE), loss=10.0 if phase.steps else 3.0)

    def loss(self, phase: PhasePlan, before: Model, after: Model, share: float) -> float:
        if not phase.steps:
            removed = max(0.0, after.absent - before.absent)
            skill = uniform(str(phase.params.get("strategy")), "skill")
            return before.loss + 4 * removed**1.5 * (1.5 - skill)
        if share > 0.5 and uniform(phase.key, "fate") < self.diverging:
            return math.inf
        floor = 3 + 0.8 * after.absent**1.5 + 0.2 * uniform(phase.key, "floor")
        pace = 2 + 3 * uniform(phase.key, "pace")
        return floor + (before.loss - floor) * math.exp(-pace * share)

    def seconds(self, phase: PhasePlan, before: Model, flops: float) -> float:
        return flops / FLOPS_PER_SECOND if phase.steps else PROBE_SECONDS


def uniform(*what: str) -> float:
    """Return a number in [0, 1) that follows from what it is for."""
    return derived_seed(*what) / 2**56
