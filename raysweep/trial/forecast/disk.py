"""Estimate the most that the checkpoints of a sweep take on the disk at one time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raysweep.job.plan import TRAINING_PHASES, PhasePlan, TrialPlan
from raysweep.job.spec import ScaleSpec

NUMBER_BYTES = 4
"""Weights and moments are stored as 32-bit numbers."""
MOMENTS = 2
"""Numbers of the optimizer's state for each weight."""
KEPT = {"results": 2, "best": 0}
"""`scale.keep` -> weights of an ended trial that stay at most: the latest and the best. Without an entry, all stay."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What of a model decides how large its checkpoints are."""

    parameters: int
    heads: int
    """Of all layers."""
    head_parameters: int
    """Parameters of one head's slices."""

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return NUMBER_BYTES * self.parameters

    @property
    def full(self) -> int:
        """Bytes of all weights and the optimizer's moments."""
        return (1 + MOMENTS) * self.weights

    def slices(self, phases: Iterable[PhasePlan]) -> int:
        """Return the bytes of the slices that phases change: those of the heads that they remove or grow."""
        removed, numbers = 0, 0
        for phase in phases:
            if phase.kind == "prune":
                removed = round(phase.params["level"] * self.heads)
                numbers += removed * self.head_parameters
            elif phase.kind == "grow":
                numbers += round(phase.params["ratio"] * removed) * self.head_parameters
        return NUMBER_BYTES * numbers


def peak_bytes(plans: Sequence[TrialPlan], scale: ScaleSpec, model: Model, *, sharing: bool) -> int:
    """Return the bytes of checkpoints when they are most: as the last trials end, of which each lane runs one.

    Args:
        plans: of all trials.
        sharing: whether equal phases of different trials run once.
    """
    users = Counter(phase.key for plan in plans for phase in plan.every_phase())
    shared = {key for key, trials in users.items() if trials > 1} if sharing else set()
    once = {phase.key: phase for plan in plans for phase in plan.every_phase() if phase.key in shared}
    # What trials share keeps its moments until nothing is to come that may train on it.
    total = model.full * _trained(once.values()) + model.slices(once.values())
    running, ended = 0, 0
    lanes = min(scale.lanes, len(plans))
    for number, plan in enumerate(plans):
        alone = [phase for phase in plan.every_phase() if phase.key not in shared]
        own = [phase for phase in plan.phases if phase.key not in shared]
        total += model.slices(alone)
        if number >= len(plans) - lanes:
            running += _running(alone, scale.checkpoint_every_steps, model)
        else:
            stay = _trained(own) if scale.keep not in KEPT else min(KEPT[scale.keep], _trained(own))
            ended += stay * (model.full if scale.keep == "all" else model.weights)
            ended += (_trained(alone) - _trained(own)) * model.full if scale.keep == "all" else 0
    best = model.weights if scale.keep == "best" else 0
    return total + running + ended + best


def _trained(phases: Iterable[PhasePlan]) -> int:
    return sum(phase.kind in TRAINING_PHASES and phase.steps > 0 for phase in phases)


def _running(phases: Sequence[PhasePlan], every: int, model: Model) -> int:
    """Return the most that one trial takes while it runs: its checkpoints, and one more while it is being replaced."""
    trained = [phase for phase in phases if _trained([phase])]
    inside = bool(trained) and any(phase.steps > every for phase in trained)
    return (len(trained) + inside) * model.full
