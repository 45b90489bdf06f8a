"""The two acts that change structure: a strategy decides on statistics, the trial's state carries it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raysweep.contracts import (
    HEAD_STATISTICS,
    HEAD_STATISTICS_ON_DEMAND,
    Array,
    Batch,
    HeadStatistics,
    Initializer,
    Mask,
    SensitivityForm,
    Slot,
)
from raysweep.errors import TrialError
from raysweep.job import registry
from raysweep.job.plan import derived_seed
from raysweep.networks.plasticity.donors import donors_of
from raysweep.networks.plasticity.growth_probe import Directions, gradmax_scores, value_directions
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.insertion import Sources, propose
from raysweep.networks.plasticity.leave_one_out import contributions
from raysweep.networks.plasticity.liveness import dead_heads
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.ranking import agreement, layer_normalised
from raysweep.trial.quotas import heads_to_remove, number_to_grow, removal_rounds
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState


@dataclass(frozen=True, kw_only=True)
class HeadMeter:
    """Measures heads on the same batches every time."""

    batches: Sequence[Batch]
    """This rank's share of the probe."""
    runtime: Runtime
    causal: bool = True
    """The task's: no position sees a later one."""

    def statistics(
        self,
        state: TrialState,
        *,
        head_map: HeadMap | None = None,
        sensitivity: Any = None,
        requires: Sequence[str] = (),
    ) -> HeadStatistics:
        """Measure the heads.

        Args:
            head_map: the heads that are present; by default the state's own.
            requires: what to measure beyond one forward and backward pass; see `Pruner.requires`.
        """
        head_map = head_map or state.head_map
        statistics = probe(
            state.model, self.batches, head_map, self.runtime.all_reduce,
            reference_entropy=state.reference_entropy, sensitivity=sensitivity,
        )  # fmt: skip
        if "contribution" not in requires:
            return statistics
        found = contributions(state.model, self.batches, head_map)
        sums = torch.from_numpy(np.stack([found.sum(0), np.full(found.shape[1:], float(len(found)))]))
        total, count = self.runtime.all_reduce(sums.to(self.runtime.device)).cpu().numpy()
        return replace(statistics, contribution=total / count)

    def directions(self, state: TrialState) -> list[Directions]:
        return value_directions(
            state.model, self.batches, state.head_map, self.runtime.all_reduce, causal=self.causal
        )  # fmt: skip


def prune(state: TrialState, params: Mapping[str, Any], *, cycle: int, key: str, examiner: HeadMeter) -> dict[str, Any]:
    """Make heads absent as `cycle.prune` says. Gates and slices follow with `state.refresh`.

    Every round scores the heads that are left anew; the decision holds each head's last score.

    Returns:
        The decision, and every statistic of every head that was there before.

    Raises:
        TrialError: the budget cannot be met.
    """
    options = _options("prune", params)
    pruner = registry.build("prune", params["strategy"], options)
    generator = np.random.default_rng(derived_seed(key, "prune"))
    groups = state.model.sites[0].num_key_value_heads
    heads: list[Slot] = []
    scores, before = np.zeros(state.model.shape), None
    ranked_by = tuple(pruner.requires)
    first = HEAD_STATISTICS_ON_DEMAND if params["contribution"] else ranked_by
    for count in removal_rounds(params, state.model.shape, groups):
        left = state.head_map.without(heads)
        statistics = examiner.statistics(state, head_map=left, requires=first if before is None else ranked_by)
        before = before or statistics
        now = pruner(statistics, generator)
        if params["normalize"] == "layer":
            now = layer_normalised(now, left.present)
        scores = np.where(left.present | ~state.head_map.present, now, scores)
        heads += heads_to_remove(now, left, count, params, cycle=cycle, groups=groups, since=state.head_map)
    assert before is not None
    examiner.runtime.assert_equal(heads)
    state.remove_heads(heads, np.where(before.present, before.entropy, np.nan))
    return {"decision": _decision(params["strategy"], options, heads, scores), **_described(before)}


def grow(
    state: TrialState, params: Mapping[str, Any], *, cycle: int, key: str, examiner: HeadMeter, born: int = 0
) -> dict[str, Any]:
    """Make absent heads present as `cycle.grow` says. `state.refresh` opens their gates.

    Args:
        born: finished steps of the training phase in which they learn.

    Returns:
        The decision.

    Raises:
        TrialError: the strategy did not return what was asked, or a new head could never learn.
    """
    count = number_to_grow(params, state.head_map, len(state.removed_heads))
    options, init_options = _options("grow", params), _options("init", params, name_key="init")
    grower = registry.build("grow", params["strategy"], options)
    initializer = registry.build("init", params["init"], init_options)
    form: SensitivityForm = options.get("form") or initializer.forms[0]
    statistics = examiner.statistics(state)
    directed = form == "gradmax" or initializer.needs == "directions"
    sources = Sources(
        taylor=statistics.taylor, stored=state.stored, directions=examiner.directions(state) if directed else ()
    )
    sensitivity = _sensitivity(state, form, initializer, key, sources, examiner)
    statistics = replace(statistics, sensitivity=sensitivity)
    heads = grower(statistics, count, np.random.default_rng(derived_seed(key, "grow")))
    _check_grown(heads, count, statistics, params["strategy"])
    examiner.runtime.assert_equal(heads)
    before = state.head_map
    state.add_heads(heads, cycle, born)
    state.initialise_new_heads(heads, initializer, key, sources)
    _check_alive(state, heads, params["init"], examiner)
    scores = np.where(statistics.present, 0.0, sensitivity)
    decision = _decision(params["strategy"], {**options, "init": params["init"], **init_options}, heads, scores)
    if initializer.needs == "donor":
        assert sources.taylor is not None
        donors = donors_of(state.model.sites, before, heads, sources.taylor)
        decision["donors"] = [list(donors[slot]) for slot in heads]
    return {"decision": {**decision, "form": form}}


def regrown(
    decision: Mapping[str, Any], cycle: int, init: str, acts: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Say for each slot that a growth brought back when it had last been pruned.

    Args:
        acts: records of the phases or events before it, the oldest first.
    """
    pruned_in = {
        tuple(slot): act["cycle"] for act in acts if act["phase"] == "prune" for slot in act["decision"]["heads"]
    }
    return [
        {"slot": slot, "pruned_in": pruned_in[tuple(slot)], "grown_in": cycle, "init": init}
        for slot in decision["heads"]
    ]


def _sensitivity(
    state: TrialState,
    form: SensitivityForm,
    initializer: Initializer,
    key: str,
    sources: Sources,
    examiner: HeadMeter,
) -> Array:
    """Return how much each absent slot would help. Proposals stay until growth or `refresh` overwrites them."""
    if form == "gradmax":
        return gradmax_scores(state.model, state.head_map, sources.directions)
    propose(state.model, state.head_map, initializer, key, sources)
    found = examiner.statistics(state, sensitivity=form).sensitivity
    assert found is not None
    return found


def _check_alive(state: TrialState, heads: Sequence[Slot], init: str, examiner: HeadMeter) -> None:
    dead = dead_heads(state.model, examiner.batches, state.head_map, heads, examiner.runtime.all_reduce)
    if dead:
        raise TrialError(f"init {init!r} makes heads {dead} that have no gradient at all: they could never learn.")


def measure(state: TrialState, examiner: HeadMeter, *, contribution: bool) -> dict[str, Any]:
    """Return every statistic of every present head, [layer][head]; and with contributions, how they agree with it."""
    return _described(examiner.statistics(state, requires=HEAD_STATISTICS_ON_DEMAND if contribution else ()))


def _described(statistics: HeadStatistics) -> dict[str, Any]:
    found = {name: getattr(statistics, name) for name in (*HEAD_STATISTICS, *HEAD_STATISTICS_ON_DEMAND)}
    found = {name: scores for name, scores in found.items() if scores is not None}
    rows = {name: _or_none(scores, statistics.present) for name, scores in found.items()}
    if statistics.contribution is None:
        return {"statistics": rows}
    truth = found.pop("contribution")
    agreements = {name: agreement(scores, truth, statistics.present) for name, scores in found.items()}
    return {"statistics": rows, "agreement": agreements}


def _check_grown(heads: list[Slot], count: int, statistics: HeadStatistics, strategy: str) -> None:
    free = {(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)}
    if len(heads) != count or len(set(heads)) != count or not set(heads) <= free:
        raise TrialError(f"growth strategy {strategy!r} returned {heads}, not {count} distinct absent slots.")


def _options(kind: str, params: Mapping[str, Any], name_key: str = "strategy") -> dict[str, Any]:
    fields = registry.load(kind, params[name_key]).__dataclass_fields__
    return {name: params[name] for name in fields if name in params}


def _decision(strategy: str, options: dict[str, Any], heads: list[Slot], scores: Array) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "options": options,
        "heads": [list(slot) for slot in heads],
        "scores": scores.tolist(),
    }


def _or_none(scores: Array, present: Mask) -> list[list[float | None]]:
    rows = zip(scores.tolist(), present.tolist(), strict=True)
    return [[score if here else None for score, here in zip(*row, strict=True)] for row in rows]
