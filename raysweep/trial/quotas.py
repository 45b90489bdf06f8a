"""Compute how many heads a prune removes and a grow adds, and which heads a prune removes, given their scores.

The trial and the rehearsal before a sweep (forecast/rehearsal.py) both count here, so that they cannot differ.
"""

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
        params: the parameters of the phase: those of `cycle.prune`, and in an event of continuous pruning a `count`.
        shape: layers and heads a layer.
        groups: key/value heads of a layer.
    """
    layers, heads = shape
    # `level` is a share of all slots, absent ones included: equal levels remove equally many heads in every cycle.
    total = params["count"] if "count" in params else share(params["level"], layers * heads)
    return round_counts(total, params["rounds"], unit_size(params["unit"], heads, groups))


def heads_to_remove(
    scores: Array, head_map: HeadMap, count: int, params: Mapping[str, Any], *, cycle: int, groups: int, since: HeadMap
) -> list[Slot]:
    """Return the heads that one round removes, lowest score first; see `lowest_heads`.

    Args:
        head_map: the heads before this round.
        since: the heads before the first round of the prune.

    Raises:
        BudgetError: so many cannot be removed, whatever the scores are.
        TrialError: they cannot be removed by these scores.
    """
    # Grace and equal shares are counted over the whole prune, so they look at the map before its first round.
    return lowest_heads(
        scores, head_map, count, budget=params["budget"], min_heads_per_layer=params["min_heads_per_layer"],
        protected=protected_heads(since, cycle, params["grace_cycles"]), unit=params["unit"], groups=groups,
        since=since, asked_by="cycle.continuous.remove" if "count" in params else "cycle.prune.level",
    )  # fmt: skip


def protected_heads(head_map: HeadMap, cycle: int, grace_cycles: int) -> set[Slot]:
    """Return the heads that a prune in `cycle` may not remove, because they were grown within the grace period."""
    # Original heads have cycle 0 in the map: the lower bound of 0 keeps a long grace period from protecting them too.
    young = np.argwhere(head_map.grown > max(0, cycle - grace_cycles - 1))
    return {(int(layer), int(head)) for layer, head in young}


def number_to_grow(params: Mapping[str, Any], head_map: HeadMap, removed: int) -> int:
    """Return how many heads a grow adds.

    Args:
        removed: number of heads that the prune before it removed.

    Raises:
        BudgetError: it is more than are absent.
    """
    # `ratio` is a share of what the last prune removed, not of all slots; an event gives the number itself.
    count = params["count"] if "count" in params else share(params["ratio"], removed)
    check_absent(head_map, count, asked_by="cycle.continuous.grow" if "count" in params else "cycle.grow.ratio")
    return int(count)
