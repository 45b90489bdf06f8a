"""Rehearse on a head map alone what a job does: a number of heads that no scores could make possible is a fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from raysweep.contracts import Array, Slot
from raysweep.errors import BudgetError, Fault
from raysweep.job.jobfile import Job
from raysweep.job.paths import get_path
from raysweep.job.plan import Fingerprints, PhasePlan, make_plan
from raysweep.job.spec import JobSpec
from raysweep.networks.loading import build_skeleton
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.trial.quotas import heads_to_remove, number_to_grow, protected_heads, removal_rounds


def budget_faults(job: Job) -> tuple[list[Fault], list[str]]:
    """Return the settings that ask for more heads to go, or to be grown, than the model has; and notes on such values.

    Where the job searches, every parameter is tried at its corners, the others at their first. It is at fault if none
    of these points is possible; if some are, the others are worth a note: their trials would fail.

    Raises:
        ModelError: no such model.
    """
    corners = job.space.corner_assignments(job.spec.resolved()) if job.space else ()
    points = [values for _, values in corners] or [{}]
    specs = {(spec.model, spec.cycle): spec for spec in map(job.with_values, points)}
    found = [(spec, *impossible) for spec in specs.values() if (impossible := _impossible(spec)) is not None]
    faults: dict[str, Fault] = {}
    for spec, phase, error in found:
        value = get_path(spec.resolved(), error.key)
        turn = "cycle" if spec.cycle.continuous is None else "event"
        said = f"in {turn} {phase.cycle}, {error}" if phase.cycle > 1 else str(error)
        faults.setdefault(error.key, job.fault(error.key, value, said))
    if len(found) == len(specs):
        return list(faults.values()), []
    return [], [f"{fault} Trials with such values will fail." for fault in faults.values()]


def _impossible(spec: JobSpec) -> tuple[PhasePlan, BudgetError] | None:
    """Return the first phase that cannot be carried out, with the reason."""
    phases = list(_structural(spec))
    if not phases:
        return None
    model = build_skeleton(spec.model, seq_len=spec.data.seq_len)
    return rehearse(phases, model.shape, model.sites[0].num_key_value_heads)


def rehearse(phases: Sequence[PhasePlan], shape: tuple[int, int], groups: int) -> tuple[PhasePlan, BudgetError] | None:
    """Prune and grow a head map as evenly as can be, which leaves most to be pruned later; return what cannot be.

    Args:
        phases: prunes and grows, in order.
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
        if count and groups < shape[1] and last_prune.params["unit"] != "head":
            return None  # what the next prune may take depends on which groups grew
        head_map = _grown_evenly(head_map, count, phase.cycle, last_prune.params["grace_cycles"])
    return None


def _structural(spec: JobSpec) -> Iterator[PhasePlan]:
    """Yield the prunes and grows of a trial, those inside a continuous phase too."""
    plan = make_plan(spec, {}, trial=1, fingerprints=Fingerprints(model="", data=""))
    for phase in plan.phases:
        inside = [PhasePlan(**each) for event in phase.params.get("events", ()) for each in event["phases"]]
        yield from (each for each in (phase, *inside) if each.kind in ("prune", "grow"))


def _pruned_evenly(head_map: HeadMap, phase: PhasePlan, groups: int) -> list[Slot]:
    slots: list[Slot] = []
    for count in removal_rounds(phase.params, head_map.grown.shape, groups):
        left = head_map.without(slots)
        protected = protected_heads(head_map, phase.cycle, phase.params["grace_cycles"])
        scores = _fullest_first(left, protected)
        slots += heads_to_remove(scores, left, count, phase.params, cycle=phase.cycle, groups=groups, since=head_map)
    return slots


def _fullest_first(head_map: HeadMap, protected: set[Slot]) -> Array:
    """Return scores by which heads go from whatever layer has most left."""
    free = head_map.present.copy()
    for slot in protected:
        free[slot] = False
    return (np.cumsum(free, axis=1) - head_map.present.sum(1, keepdims=True)).astype(np.float64)


def _grown_evenly(head_map: HeadMap, count: int, cycle: int, grace: int) -> HeadMap:
    """Grow heads where fewest are protected from the next prune; of equals where fewest are."""
    protected = Counter(layer for layer, _ in protected_heads(head_map, cycle + 1, grace))
    absent = [np.flatnonzero(~row).tolist() for row in head_map.present]
    slots: list[Slot] = []
    for _ in range(count):
        open_layers = (layer for layer, heads in enumerate(absent) if heads)
        layer = min(open_layers, key=lambda each: (protected[each], -len(absent[each])))
        slots.append((layer, absent[layer].pop()))
        protected[layer] += 1
    return head_map.with_grown(slots, cycle)
