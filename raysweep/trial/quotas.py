"""How many heads a prune and a grow change, and which ones a prune takes, given scores: as `cycle` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysweep.contracts import Array, Slot
from raysweep.networks.plasticity.budget import check_absent, lowest_heads, round_counts, share
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.units import unit_size


def removal_rounds(params: Mapping[str, Any], shape: Sequence[int], groups: int) -> list[int]:
    """Return how many heads a prune removes in each of its rounds.

    Args:
        params: of the phase: those of `cycle.prune`, and the `count` of an event.
        shape: layers and heads a layer.
        groups: key/value heads of a layer.
    """
    layers, heads = shape
    total = params["count"] if "count" in params else share(params["level"], layers * heads)
    return round_counts(total, params["rounds"], unit_size(params["unit"], heads, groups))


def heads_to_remove(
    scores: Array, head_map: HeadMap, count: int, params: Mapping[str, Any], *, cycle: int, groups: int, since: HeadMap
) -> list[Slot]:
    """Return the heads of one round, lowest score first; see `lowest_heads`.

    Raises:
        TrialError: they cannot be had; BudgetError: whatever the scores are.
    """
    return lowest_heads(
        scores, head_map, count, budget=params["budget"], min_heads_per_layer=params["min_heads_per_layer"],
        protected=protected_heads(since, cycle, params["grace_cycles"]), unit=params["unit"], groups=groups,
        since=since, asked_by="cycle.continuous.remove" if "count" in params else "cycle.prune.level",
    )  # fmt: skip


def protected_heads(head_map: HeadMap, cycle: int, grace_cycles: int) -> set[Slot]:
    """Return the heads that were grown too lately to be pruned in a cycle."""
    young = np.argwhere(head_map.grown > max(0, cycle - grace_cycles - 1))
    return {(int(layer), int(head)) for layer, head in young}


def number_to_grow(params: Mapping[str, Any], head_map: HeadMap, removed: int) -> int:
    """Return how many heads a grow adds.

    Args:
        removed: heads that the prune before it took.

    Raises:
        BudgetError: more than are absent.
    """
    count = params["count"] if "count" in params else share(params["ratio"], removed)
    check_absent(head_map, count, asked_by="cycle.continuous.grow" if "count" in params else "cycle.grow.ratio")
    return int(count)
