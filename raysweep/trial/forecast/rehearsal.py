"""Rehearse the prunes and grows of a job on a head map alone, to find counts that are impossible whatever the scores.

Which heads a trial will remove depends on scores that only training gives. The rehearsal removes and grows as evenly as
possible, which is the best case for later prunes: what is impossible here is impossible in every trial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from raysweep.contracts import Array, Slot
from raysweep.errors import BudgetError, Fault
from raysweep.job.jobfile import Job
from raysweep.job.paths import get_path
from raysweep.job.plan import Fingerprints, PhasePlan, make_plan
from raysweep.job.spec import JobSpec, ModelSpec
from raysweep.networks.loading import build_skeleton
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.trial.quotas import heads_to_remove, number_to_grow, protected_heads, removal_rounds


def budget_faults(job: Job) -> tuple[list[Fault], list[str]]:
    """Return the settings that ask to prune or grow more heads than possible, as faults, or as notes if only some do.

    If the job searches, each parameter is tried at its corners, with the first values of the others. The job is at
    fault if none of these points is possible. If some are, the others give notes: their trials would fail.

    Raises:
        ModelError: there is no such model.
    """
    corners = job.space.corner_assignments(job.spec.resolved()) if job.space else ()
    points = [values for _, values in corners] or [{}]
    # Points that differ in neither model nor cycle prune and grow alike, and are rehearsed once.
    specs = {(spec.model, spec.cycle): spec for spec in map(job.with_values, points)}
    # Points often differ in their cycle alone: a model is built once.
    shape_of = cache(_shape_of)
    # None from `_impossible` means that the point is possible, or that only a trial can tell.
    found = [(spec, *impossible) for spec in specs.values() if (impossible := _impossible(spec, shape_of)) is not None]
    faults: dict[str, Fault] = {}
    for spec, phase, error in found:
        value = get_path(spec.resolved(), error.key)
        turn = "cycle" if spec.cycle.continuous is None else "event"
        said = f"in {turn} {phase.cycle}, {error}" if phase.cycle > 1 else str(error)
        faults.setdefault(error.key, job.fault(error.key, value, said))
    if len(found) == len(specs):
        return list(faults.values()), []
    return [], [f"{fault} Trials with such values will fail." for fault in faults.values()]


def _impossible(
    spec: JobSpec, shape_of: Callable[[ModelSpec, int], tuple[tuple[int, int], int]]
) -> tuple[PhasePlan, BudgetError] | None:
    """Return the first phase that cannot be carried out and why; None if all can."""
    phases = list(_structural(spec))
    return rehearse(phases, *shape_of(spec.model, spec.data.seq_len)) if phases else None


def _shape_of(model: ModelSpec, seq_len: int) -> tuple[tuple[int, int], int]:
    """Return the (layers, heads) of a model, and the key/value heads of a layer."""
    skeleton = build_skeleton(model, seq_len=seq_len)
    return skeleton.shape, skeleton.sites[0].num_key_value_heads


def rehearse(phases: Sequence[PhasePlan], shape: tuple[int, int], groups: int) -> tuple[PhasePlan, BudgetError] | None:
    """Prune and grow a head map as evenly as possible; return the first impossible phase and why, or None.

    Args:
        phases: the prunes and grows, in order.
        shape: layers and heads a layer.
        groups: key/value heads of a layer.
    """
    head_map, last_prune = HeadMap.full(*shape), phases[0]
    removed: list[Slot] = []
    for phase in phases:
        try:
            if phase.kind == "prune":
                removed, last_prune = _pruned_evenly(head_map, phase, groups), phase
                head_map = head_map.without(removed)
                continue
            count = number_to_grow(phase.params, head_map, len(removed))
        except BudgetError as error:
            return phase, error
        # From here on it depends on which groups grew what the next prune may remove, and only scores decide that.
        if count and groups < shape[1] and last_prune.params["unit"] != "head":
            return None
        head_map = _grown_evenly(head_map, count, phase.cycle, last_prune.params["grace_cycles"])
    return None


def _structural(spec: JobSpec) -> Iterator[PhasePlan]:
    """Yield the prunes and grows of a trial, those inside a continuous phase too."""
    # The fingerprints go into keys alone, which are of no interest here.
    plan = make_plan(spec, {}, trial=1, fingerprints=Fingerprints(model="", data=""))
    for phase in plan.phases:
        inside = [PhasePlan(**each) for event in phase.params.get("events", ()) for each in event["phases"]]
        yield from (each for each in (phase, *inside) if each.kind in ("prune", "grow"))


def _pruned_evenly(head_map: HeadMap, phase: PhasePlan, groups: int) -> list[Slot]:
    """Return the slots that a prune removes if scores spread it evenly over layers.

    Raises:
        BudgetError: so many cannot be removed.
    """
    slots: list[Slot] = []
    for count in removal_rounds(phase.params, head_map.grown.shape, groups):
        left = head_map.without(slots)
        protected = protected_heads(head_map, phase.cycle, phase.params["grace_cycles"])
        scores = _fullest_first(left, protected)
        slots += heads_to_remove(scores, left, count, phase.params, cycle=phase.cycle, groups=groups, since=head_map)
    return slots


def _fullest_first(head_map: HeadMap, protected: set[Slot]) -> Array:
    """Return scores by which heads are removed from the layer that has most heads left."""
    # The k-th unprotected head of a layer scores k minus the layer's number of heads: the fuller the layer, the lower
    # its scores. They rise by one from head to head, so that layers take turns once they are equally full.
    free = head_map.present.copy()
    for slot in protected:
        free[slot] = False
    return (np.cumsum(free, axis=1) - head_map.present.sum(1, keepdims=True)).astype(np.float64)


def _grown_evenly(head_map: HeadMap, count: int, cycle: int, grace: int) -> HeadMap:
    """Grow each head in the layer with fewest protected heads, of equal layers in the one with fewest heads."""
    # A grown head is protected from the next prunes. Protected heads in one layer could leave it nothing to remove.
    protected = Counter(layer for layer, _ in protected_heads(head_map, cycle + 1, grace))
    absent = [np.flatnonzero(~row).tolist() for row in head_map.present]
    slots: list[Slot] = []
    for _ in range(count):
        open_layers = (layer for layer, heads in enumerate(absent) if heads)
        layer = min(open_layers, key=lambda each: (protected[each], -len(absent[each])))
        slots.append((layer, absent[layer].pop()))
        # The head just grown is protected, too, and counts for the next one.
        protected[layer] += 1
    return head_map.with_grown(slots, cycle)
