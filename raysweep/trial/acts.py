"""Measure, prune and grow heads: a strategy decides from head statistics, the trial's state carries the decision out.

A strategy only returns scores or slots. All ranks see the same all-reduced statistics and draw from the same seeds, so
all come to the same decision without a message; `assert_equal` checks that they did.
"""

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
    """Measures head statistics, on the same batches every time."""

    batches: Sequence[Batch]
    """This rank's share of the probe."""
    runtime: Runtime
    causal: bool = True
    """Whether no position sees a later one, as the task says."""

    def statistics(
        self,
        state: TrialState,
        *,
        head_map: HeadMap | None = None,
        sensitivity: Any = None,
        requires: Sequence[str] = (),
    ) -> HeadStatistics:
        """Return the statistics of every head slot, over the probe of all ranks.

        Args:
            head_map: the heads to take as present; by default the state's own.
            sensitivity: the form of the sensitivity of absent slots to measure too; see `probe`.
            requires: statistics on demand to measure too; see `Pruner.requires`.
        """
        head_map = head_map or state.head_map
        self.runtime.beat()
        statistics = probe(
            state.model, self.batches, head_map, self.runtime.all_reduce,
            reference_entropy=state.reference_entropy, sensitivity=sensitivity,
        )  # fmt: skip
        if "contribution" not in requires:
            return statistics
        found = contributions(state.model, self.batches, head_map, lambda done, total: self.runtime.beat())
        # Ranks may hold unequal numbers of windows, so the sum and the number are added up, and divided at the end.
        sums = torch.from_numpy(np.stack([found.sum(0), np.full(found.shape[1:], float(len(found)))]))
        total, count = self.runtime.all_reduce(sums.to(self.runtime.device)).cpu().numpy()
        return replace(statistics, contribution=total / count)

    def directions(self, state: TrialState) -> list[Directions]:
        """Return GradMax's directions of each layer, over the probe of all ranks; see growth_probe."""
        return value_directions(
            state.model, self.batches, state.head_map, self.runtime.all_reduce, causal=self.causal
        )  # fmt: skip


def prune(state: TrialState, params: Mapping[str, Any], *, cycle: int, key: str, meter: HeadMeter) -> dict[str, Any]:
    """Make heads absent as `cycle.prune` says. `state.refresh` then closes their gates and clears their slices.

    Every round scores the remaining heads anew; the decision holds each head's last score.

    Args:
        key: of the phase or event; random strategies draw from it.

    Returns:
        The decision, and every statistic of every head that was present before.

    Raises:
        TrialError: the budget cannot be met.
    """
    options = _options("prune", params)
    pruner = registry.build("prune", params["strategy"], options)
    # Seeded by the phase key: equal phases of different trials, and a phase that is run again, draw the same numbers.
    generator = np.random.default_rng(derived_seed(key, "prune"))
    # All layers of a network have equally many key/value heads, so the first stands for all.
    groups = state.model.sites[0].num_key_value_heads
    heads: list[Slot] = []
    scores, before = np.zeros(state.model.shape), None
    ranked_by = tuple(pruner.requires)
    first = HEAD_STATISTICS_ON_DEMAND if params["contribution"] else ranked_by
    for count in removal_rounds(params, state.model.shape, groups):
        left = state.head_map.without(heads)
        # Statistics on demand are recorded as they are before the prune, so later rounds measure only what ranks heads.
        statistics = meter.statistics(state, head_map=left, requires=first if before is None else ranked_by)
        before = before or statistics
        now = pruner(statistics, generator)
        if params["normalize"] == "layer":
            now = layer_normalised(now, left.present)
        # A head that an earlier round removed keeps the score it was removed by.
        scores = np.where(left.present | ~state.head_map.present, now, scores)
        heads += heads_to_remove(now, left, count, params, cycle=cycle, groups=groups, since=state.head_map)
    assert before is not None
    meter.runtime.assert_equal(heads)
    # Heads that were absent before the prune have no entropy to compare with: NaN, not the number of a closed gate.
    state.remove_heads(heads, np.where(before.present, before.entropy, np.nan))
    return {"decision": _decision(params["strategy"], options, heads, scores), **_described(before)}


def grow(
    state: TrialState, params: Mapping[str, Any], *, cycle: int, key: str, meter: HeadMeter, born: int = 0
) -> dict[str, Any]:
    """Make absent heads present as `cycle.grow` says. `state.refresh` then opens their gates.

    Args:
        key: of the phase or event; random strategies and initializers draw from it.
        born: finished steps of the training phase in which the new heads learn.

    Returns:
        The decision.

    Raises:
        TrialError: the strategy did not return as many absent slots as asked for, or a new head could never learn.
    """
    count = number_to_grow(params, state.head_map, len(state.removed_heads))
    options, init_options = _options("grow", params), _options("init", params, name_key="init")
    grower = registry.build("grow", params["strategy"], options)
    initializer = registry.build("init", params["init"], init_options)
    # Each initializer lists first the form of sensitivity that tells its new heads apart; a job may ask for another.
    form: SensitivityForm = options.get("form") or initializer.forms[0]
    statistics, sources = _growth_statistics(state, form, initializer, key, meter)
    # A seed of its own for each purpose: another initializer leaves the slots that a random strategy chooses alone.
    heads = grower(statistics, count, np.random.default_rng(derived_seed(key, "grow")))
    _check_grown(heads, count, statistics, params["strategy"])
    meter.runtime.assert_equal(heads)
    before = state.head_map
    # Present first, then initialised: which slices come alive follows from the map with and without the new heads.
    state.add_heads(heads, cycle, born)
    state.initialise_new_heads(heads, initializer, key, sources)
    _check_alive(state, heads, params["init"], meter)
    assert statistics.sensitivity is not None
    scores = np.where(statistics.present, 0.0, statistics.sensitivity)
    decision = _decision(params["strategy"], {**options, "init": params["init"], **init_options}, heads, scores)
    if initializer.needs == "donor":
        # The donors follow from the statistics, so they are worked out again here instead of handed through.
        assert sources.taylor is not None
        donors = donors_of(state.model.sites, before, heads, sources.taylor)
        decision["donors"] = [list(donors[slot]) for slot in heads]
    return {"decision": {**decision, "form": form}}


def regrown(
    decision: Mapping[str, Any], cycle: int, init: str, acts: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return for each slot that a growth brought back the cycles in which it was last pruned and now grown.

    Args:
        decision: of the growth.
        cycle: of the growth.
        init: name of the initializer.
        acts: records of the phases or events before it, the oldest first.
    """
    # Oldest first, so that the last prune of a slot overwrites earlier ones.
    pruned_in = {
        tuple(slot): act["cycle"] for act in acts if act["phase"] == "prune" for slot in act["decision"]["heads"]
    }
    return [
        {"slot": slot, "pruned_in": pruned_in[tuple(slot)], "grown_in": cycle, "init": init}
        for slot in decision["heads"]
    ]


def _growth_statistics(
    state: TrialState, form: SensitivityForm, initializer: Initializer, key: str, meter: HeadMeter
) -> tuple[HeadStatistics, Sources]:
    """Return the statistics with the sensitivity of absent slots, and what new heads may be made from."""
    statistics = meter.statistics(state)
    # Directions take a pass of their own, so they are measured only for GradMax.
    directed = form == "gradmax" or initializer.needs == "directions"
    sources = Sources(
        taylor=statistics.taylor, stored=state.stored, directions=meter.directions(state) if directed else ()
    )
    # Only the sensitivity is one of proposed weights; all other statistics are from before the proposals.
    sensitivity = _sensitivity(state, form, initializer, key, sources, meter)
    return replace(statistics, sensitivity=sensitivity), sources


def _sensitivity(
    state: TrialState,
    form: SensitivityForm,
    initializer: Initializer,
    key: str,
    sources: Sources,
    meter: HeadMeter,
) -> Array:
    """Return how much each absent slot would lower the loss, [layers][heads].

    Absent slots are filled with proposed weights, which stay until a growth or `state.refresh` overwrites them.
    """
    # GradMax's gain is known from the directions alone; the other forms need weights to differentiate through.
    if form == "gradmax":
        return gradmax_scores(state.model, state.head_map, sources.directions)
    propose(state.model, state.head_map, initializer, key, sources)
    found = meter.statistics(state, sensitivity=form).sensitivity
    assert found is not None
    return found


def _check_alive(state: TrialState, heads: Sequence[Slot], init: str, meter: HeadMeter) -> None:
    """Check that every new head has a gradient.

    Raises:
        TrialError: a new head has none, as where query, key, value and output are all zero.
    """
    dead = dead_heads(state.model, meter.batches, state.head_map, heads, meter.runtime.all_reduce)
    if dead:
        raise TrialError(f"init {init!r} makes heads {dead} that have no gradient at all: they could never learn.")


def measure(state: TrialState, meter: HeadMeter, *, contribution: bool) -> dict[str, Any]:
    """Return every statistic of every present head, [layer][head].

    With `contribution`, return also how far each statistic ranks heads as their contribution does.
    """
    return _described(meter.statistics(state, requires=HEAD_STATISTICS_ON_DEMAND if contribution else ()))


def _described(statistics: HeadStatistics) -> dict[str, Any]:
    found = {name: getattr(statistics, name) for name in (*HEAD_STATISTICS, *HEAD_STATISTICS_ON_DEMAND)}
    found = {name: scores for name, scores in found.items() if scores is not None}
    rows = {name: _or_none(scores, statistics.present) for name, scores in found.items()}
    # The contribution is the truth that the other statistics approximate; without it there is nothing to agree with.
    if statistics.contribution is None:
        return {"statistics": rows}
    truth = found.pop("contribution")
    agreements = {name: agreement(scores, truth, statistics.present) for name, scores in found.items()}
    return {"statistics": rows, "agreement": agreements}


def _check_grown(heads: list[Slot], count: int, statistics: HeadStatistics, strategy: str) -> None:
    # A strategy may come from outside raysweep, and nothing later would notice a wrong number of heads.
    free = {(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)}
    if len(heads) != count or len(set(heads)) != count or not set(heads) <= free:
        raise TrialError(f"growth strategy {strategy!r} returned {heads}, not {count} distinct absent slots.")


def _options(kind: str, params: Mapping[str, Any], name_key: str = "strategy") -> dict[str, Any]:
    """Return those parameters of a phase that are options of its strategy.

    Args:
        name_key: the parameter that names the strategy.
    """
    # A strategy's options stand beside the phase's own settings, so its dataclass fields tell which are its.
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
    """Return scores as lists, None at absent heads."""
    rows = zip(scores.tolist(), present.tolist(), strict=True)
    return [[score if here else None for score, here in zip(*row, strict=True)] for row in rows]
