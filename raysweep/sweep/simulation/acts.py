"""Prune and grow the heads of a simulated model, and write the record of a simulated phase."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raysweep.contracts import Slot
from raysweep.errors import TrialError
from raysweep.job.plan import PhasePlan, TrialPlan, derived_seed
from raysweep.networks.plasticity.budget import share
from raysweep.records.schema import PhaseRecord, perplexity
from raysweep.sweep.simulation.curves import DENSE_FLOPS, NUM_PARAMETERS, SHARE_OF_HEADS, Model

TRAINING_TO_FORWARD = 3
"""A training step takes three forward passes: the backward pass takes two."""


@dataclass(kw_only=True)
class Trace:
    """What a training phase has logged so far. The part in its checkpoint survives the death of its worker."""

    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def copy(self) -> Trace:
        return Trace(step=self.step, curve=list(self.curve), evaluations=list(self.evaluations))


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a phase changed the heads: its decision, or the events of a continuous learn phase."""

    after: Model
    decision: dict[str, Any] | None = None
    events: list[dict[str, Any]] | None = None


def change(phase: PhasePlan, before: Model) -> Change:
    """Return how a phase changes the heads; which ones is drawn at random, seeded by its key.

    Raises:
        TrialError: it is to remove or grow more heads than it can.
    """
    if "events" in phase.params:
        return _events(phase, before)
    if phase.kind not in ("prune", "grow"):
        return Change(after=before)
    after, heads = _act(phase.kind, phase.cycle, phase.key, phase.params, before)
    return Change(after=after, decision=_decision(phase.params, heads))


def _events(phase: PhasePlan, before: Model) -> Change:
    after, done = before, []
    for event in phase.params["events"]:
        for planned in event["phases"]:
            about = {"step": event["step"], "phase": planned["kind"], "cycle": planned["cycle"], "key": planned["key"]}
            if planned["kind"] != "measure":
                after, heads = _act(planned["kind"], planned["cycle"], planned["key"], planned["params"], after)
                about["decision"] = _decision(planned["params"], heads)
            done.append(about)
    return Change(after=after, events=done)


def _act(kind: str, cycle: int, key: str, params: Mapping[str, Any], model: Model) -> tuple[Model, list[Slot]]:
    # Levels are shares of all heads; ratios of growth are shares of those that this cycle removed. See cycle.prune and
    # cycle.grow.
    pruning = kind == "prune"
    total = model.heads.grown.size if pruning else len(model.removed)
    count = params["count"] if "count" in params else share(params["level" if pruning else "ratio"], total)
    mask = model.heads.present if pruning else ~model.heads.present
    slots = [(int(layer), int(head)) for layer, head in np.argwhere(mask)]
    if count > len(slots):
        raise TrialError(f"{kind}: {count} heads asked, {len(slots)} there.")
    chosen = random.Random(derived_seed(key, "heads")).sample(slots, count)
    if pruning:
        return replace(model, heads=model.heads.without(chosen), removed=tuple(chosen)), chosen
    return replace(model, heads=model.heads.with_grown(chosen, cycle)), chosen


def _decision(params: Mapping[str, Any], heads: list[Slot]) -> dict[str, Any]:
    return {"strategy": params["strategy"], "options": {}, "heads": [list(slot) for slot in heads], "scores": []}


def step_flops(plan: TrialPlan, density: float) -> float:
    """Return the FLOPs of a training step.

    Args:
        density: operations of the model as a share of those with every head.
    """
    tokens = plan.training["batch_size"] * plan.data["seq_len"]
    return TRAINING_TO_FORWARD * DENSE_FLOPS * density * tokens


def density(model: Model) -> float:
    """Return the operations of a model as a share of those with every head."""
    return 1 - SHARE_OF_HEADS * model.absent


def record(
    plan: TrialPlan, phase: PhasePlan, changed: Change, loss: float, trace: Trace, seconds: float
) -> PhaseRecord:
    """Return the record of a finished phase.

    Args:
        seconds: how long it took on a lane that is not slow.
    """
    after, steps = changed.after, phase.steps
    return PhaseRecord(
        trial=plan.trial,
        phase=phase.kind,
        cycle=phase.cycle,
        key=phase.key,
        reused=False,
        loss=loss,
        perplexity=perplexity(loss),
        # Made up: the geometric mean of the probabilities that the model gives to the right labels.
        accuracy=math.exp(-loss),
        active_heads=after.heads.active,
        head_map=after.heads.to_lists(),
        params=round(NUM_PARAMETERS * density(after)),
        flops_per_token=DENSE_FLOPS * density(after),
        steps=steps,
        tokens=steps * plan.training["batch_size"] * plan.data["seq_len"],
        seconds=round(seconds, 3),
        training_flops=steps * step_flops(plan, density(after)),
        dense_training_flops=steps * step_flops(plan, 1.0),
        curve=trace.curve,
        evaluations=trace.evaluations,
        decision=changed.decision,
        events=changed.events,
    )
