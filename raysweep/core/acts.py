"""The two acts that change structure: a strategy decides on statistics, the trial's state carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysweep import registry
from raysweep.contracts import Array, Batch, HeadStatistics, Slot
from raysweep.core.runtime import Runtime
from raysweep.core.state import TrialState
from raysweep.errors import TrialError
from raysweep.plan import derived_seed
from raysweep.plasticity.budget import lowest_heads, share
from raysweep.plasticity.probe import probe
from raysweep.plasticity.surgery import absent_slices, initialise


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Measures heads on the same batches every time."""

    batches: Sequence[Batch]
    """This rank's share of the probe."""
    runtime: Runtime

    def statistics(self, state: TrialState, sensitivity: Any = None) -> HeadStatistics:
        return probe(
            state.model, self.batches, state.head_map, self.runtime.all_reduce,
            reference_entropy=state.reference_entropy, sensitivity=sensitivity,
        )  # fmt: skip


def prune(state: TrialState, params: Mapping[str, Any], *, cycle: int, key: str, examiner: Examiner) -> dict[str, Any]:
    """Make heads absent as `cycle.prune` says; return the decision. Gates and slices follow with `state.refresh`.

    Raises:
        TrialError: the budget cannot be met.
    """
    statistics = examiner.statistics(state)
    options = _options("prune", params)
    pruner = registry.build("prune", params["strategy"], options)
    scores = pruner(statistics, np.random.default_rng(derived_seed(key, "prune")))
    grown = state.head_map.grown
    count = params["count"] if "count" in params else share(params["level"], grown.size)
    heads = lowest_heads(
        scores, state.head_map, count,
        budget=params["budget"], min_heads_per_layer=params["min_heads_per_layer"],
        protected={
            (int(layer), int(head)) for layer, head in np.argwhere(grown > max(0, cycle - params["grace_cycles"] - 1))
        },
    )  # fmt: skip
    examiner.runtime.assert_equal(heads)
    state.remove_heads(heads, np.where(statistics.present, statistics.entropy, np.nan))
    return _decision(params["strategy"], options, heads, scores)


def grow(state: TrialState, params: Mapping[str, Any], *, cycle: int, key: str, examiner: Examiner) -> dict[str, Any]:
    """Make absent heads present as `cycle.grow` says; return the decision. `state.refresh` opens their gates.

    Raises:
        TrialError: the strategy did not return what was asked.
    """
    count = params["count"] if "count" in params else share(params["ratio"], len(state.removed_heads))
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


def measure(state: TrialState, examiner: Examiner) -> dict[str, list[list[float]]]:
    """Return every statistic of every head slot, [layer][head]."""
    statistics = examiner.statistics(state)
    names = ("taylor", "entropy", "sink_mass", "output_norm", "magnitude")
    return {name: getattr(statistics, name).tolist() for name in names}


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
