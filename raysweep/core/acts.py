"""The two acts that change structure: a strategy decides on statistics, the trial's state carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raysweep import registry
from raysweep.contracts import Array, Batch, HeadStatistics, Slot
from raysweep.core.runtime import Runtime
from raysweep.core.state import TrialState
from raysweep.errors import TrialError
from raysweep.plan import derived_seed
from raysweep.plasticity.budget import lowest_heads, round_counts, share
from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.leave_one_out import contributions
from raysweep.plasticity.probe import probe
from raysweep.plasticity.ranking import layer_normalised
from raysweep.plasticity.surgery import absent_slices, initialise
from raysweep.plasticity.units import unit_size


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Measures heads on the same batches every time."""

    batches: Sequence[Batch]
    """This rank's share of the probe."""
    runtime: Runtime

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


def prune(state: TrialState, params: Mapping[str, Any], *, cycle: int, key: str, examiner: Examiner) -> dict[str, Any]:
    """Make heads absent as `cycle.prune` says; return the decision. Gates and slices follow with `state.refresh`.

    Every round scores the heads that are left anew; the decision holds each head's last score.

    Raises:
        TrialError: the budget cannot be met.
    """
    options = _options("prune", params)
    pruner = registry.build("prune", params["strategy"], options)
    generator = np.random.default_rng(derived_seed(key, "prune"))
    site = state.model.sites[0]
    grown = state.head_map.grown
    protected = {
        (int(layer), int(head)) for layer, head in np.argwhere(grown > max(0, cycle - params["grace_cycles"] - 1))
    }
    size = unit_size(params["unit"], site.num_heads, site.num_key_value_heads)
    heads: list[Slot] = []
    scores, entropy = np.zeros(grown.shape), np.full(grown.shape, np.nan)
    for count in round_counts(share(params["level"], grown.size), params["rounds"], size):
        left = state.head_map.without(heads)
        statistics = examiner.statistics(state, head_map=left, requires=getattr(pruner, "requires", ()))
        if not heads:
            entropy = np.where(left.present, statistics.entropy, np.nan)
        now = pruner(statistics, generator)
        if params["normalize"] == "layer":
            now = layer_normalised(now, left.present)
        scores = np.where(left.present | ~state.head_map.present, now, scores)
        heads += lowest_heads(
            now, left, count, budget=params["budget"], min_heads_per_layer=params["min_heads_per_layer"],
            protected=protected, unit=params["unit"], groups=site.num_key_value_heads, since=state.head_map,
        )  # fmt: skip
    examiner.runtime.assert_equal(heads)
    state.remove_heads(heads, entropy)
    return _decision(params["strategy"], options, heads, scores)


def grow(
    state: TrialState, params: Mapping[str, Any], *, cycle: int, count: int, key: str, examiner: Examiner
) -> dict[str, Any]:
    """Make `count` absent heads present as `cycle.grow` says; return the decision. `state.refresh` opens their gates.

    Raises:
        TrialError: the strategy did not return what was asked.
    """
    options = _options("grow", params)
    grower = registry.build("grow", params["strategy"], options)
    initializer = registry.build("init", params["init"])
    initialise(state.model, absent_slices(state.model.sites, state.head_map), initializer, key)  # proposals
    statistics = examiner.statistics(state, sensitivity=initializer.sensitivity)
    heads = grower(statistics, count, np.random.default_rng(derived_seed(key, "grow")))
    _check_grown(heads, count, statistics, params["strategy"])
    examiner.runtime.assert_equal(heads)
    state.add_heads(heads, cycle)
    state.initialise_new_heads(params["init"], key)
    assert statistics.sensitivity is not None
    scores = np.where(statistics.present, 0.0, statistics.sensitivity)
    return _decision(params["strategy"], {**options, "init": params["init"]}, heads, scores)


def _check_grown(heads: list[Slot], count: int, statistics: HeadStatistics, strategy: str) -> None:
    free = {(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)}
    if len(heads) != count or len(set(heads)) != count or not set(heads) <= free:
        raise TrialError(f"growth strategy {strategy!r} returned {heads}, not {count} distinct absent slots.")


def _options(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    fields = registry.load(kind, params["strategy"]).__dataclass_fields__
    return {name: params[name] for name in fields if name in params}


def _decision(strategy: str, options: dict[str, Any], heads: list[Slot], scores: Array) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "options": options,
        "heads": [list(slot) for slot in heads],
        "scores": scores.tolist(),
    }
