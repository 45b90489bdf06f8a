"""Units of removal: one head, a whole key/value group, or one head of every group."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal

import numpy as np

from raysweep.contracts import Array, Slot
from raysweep.errors import TrialError
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.ranking import rounded

UnitKind = Literal["head", "group", "equal"]
Unit = tuple[Slot, ...]
"""Slots of one layer that are removed together."""


def unit_size(kind: UnitKind, heads: int, groups: int) -> int:
    """Return how many heads a unit holds in a layer where none is absent."""
    return {"head": 1, "group": heads // groups, "equal": groups if groups < heads else 1}[kind]


def removable_units(
    scores: Array, head_map: HeadMap, layer: int, *, kind: UnitKind, groups: int, protected: Set[Slot]
) -> list[Unit]:
    """Return the removable units of a layer, lowest mean score first; ties go by their first head.

    Args:
        scores: [layers][heads].
        kind: `head` is any query head. `group` is all present heads that share a key/value head. `equal` is the lowest
            head of every group that has heads left, then the second lowest, and so on: groups stay equally large,
            which stock attention code needs. Without sharing, all three are single heads.
        groups: key/value heads of a layer.
        protected: heads that may not be removed; nor may a group with one of them.

    Raises:
        TrialError: `equal`, but the groups are no longer equally large.
    """
    heads = scores.shape[1]
    present = [(layer, int(head)) for head in np.flatnonzero(head_map.present[layer])]
    # As AttentionSite.group_of: consecutive query heads share a key/value head.
    members = [[slot for slot in present if slot[1] * groups // heads == group] for group in range(groups)]
    # Within a group, lowest score first: `equal` zips the groups in that order.
    members = [sorted(slots, key=lambda slot: rank(scores, (slot,))) for slots in members if slots]
    free = [[slot for slot in slots if slot not in protected] for slots in members]
    if kind == "head" or groups == heads:
        units: list[Unit] = [(slot,) for slots in free for slot in slots]
    elif kind == "group":
        units = [tuple(slots) for slots, may_go in zip(members, free, strict=True) if slots == may_go]
    else:
        sizes = sorted({len(slots) for slots in members})
        if len(sizes) > 1:
            raise TrialError(
                f"layer {layer} has key/value groups of {' and '.join(map(str, sizes))} heads, which cannot stay equal."
                " Set cycle.prune.unit: head, or regrow no heads."
            )
        # Not strict: protected heads leave groups unequally long, and the shortest one limits how many units
        # there are.
        units = list(zip(*free, strict=False))
    return sorted(units, key=lambda unit: rank(scores, unit))


def rank(scores: Array, unit: Unit) -> tuple[float, int, int]:
    """Return a key that orders units by mean score (rounded, see ranking.DIGITS), then by layer and first head."""
    return (rounded(float(np.mean([scores[slot] for slot in unit]))), *min(unit))
