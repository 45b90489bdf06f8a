"""Exact budgets: how many heads, and which ones, given scores. Infeasible is an error, never a shortfall."""

from __future__ import annotations

import math
from collections.abc import Set
from itertools import accumulate

import numpy as np

from raysweep.contracts import Array, Slot
from raysweep.errors import BudgetError, TrialError
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.units import Unit, UnitKind, rank, removable_units


def share(fraction: float, total: int) -> int:
    """Return fraction * total, rounded half up (0.5 of 5 is 3)."""
    return math.floor(round(fraction * total, 9) + 0.5)


def round_counts(count: int, rounds: int, size: int = 1) -> list[int]:
    """Split a count into rounds as even as whole units of `size` heads allow; rounds without any are left out."""
    bounds = [share(done / rounds, count // size) * size for done in range(rounds)] + [count]
    return [stop - start for start, stop in zip(bounds, bounds[1:], strict=False) if stop > start] or [0]


def lowest_heads(
    scores: Array,
    head_map: HeadMap,
    count: int,
    *,
    budget: str,
    min_heads_per_layer: int,
    protected: Set[Slot],
    unit: UnitKind = "head",
    groups: int | None = None,
    since: HeadMap | None = None,
    asked_by: str = "cycle.prune.level",
) -> list[Slot]:
    """Return the `count` present heads to remove, lowest score first.

    Ties go by (layer, head). Scores are rounded to nine digits first, so that the sum order of a distributed probe
    cannot change the plan.

    Args:
        scores: [layers][heads]; absent heads are ignored.
        budget: `global`, or `per_layer` for an equal share per layer (the remainder goes to the layers whose next
            head scores lowest).
        protected: heads that may not go, such as freshly grown ones.
        unit: what goes together; see `units.removable_units`. A unit's score is the mean of its heads'.
        groups: key/value heads of a layer. Default: one for each head.
        since: the heads before the first of several rounds, over which `per_layer` shares are equal. Default: now.
        asked_by: the setting of the job that the count comes from.

    Raises:
        BudgetError: fewer heads may go than asked, or units do not add up to the count.
        TrialError: a score is not finite.
    """
    present = head_map.present
    if not np.isfinite(scores[present]).all():
        raise TrialError("a head score is not finite; nothing can be ranked by it.")
    layers, heads = scores.shape
    units = [
        removable_units(scores, head_map, layer, kind=unit, groups=groups or heads, protected=protected)
        for layer in range(layers)
    ]
    rows = _above(min_heads_per_layer, units, head_map)
    available = _heads_in(rows)
    if count > available:
        floor_is_it = count <= _heads_in(_above(1, units, head_map))
        key, or_else = ("cycle.prune.min_heads_per_layer", f" or {asked_by}") if floor_is_it else (asked_by, "")
        way_out = f"Lower {key}{or_else}" + ("." if unit == "head" else ", or set cycle.prune.unit: head.")
        together = "" if unit == "head" else f", cycle.prune.unit = {unit} with {groups} key/value heads a layer"
        raise BudgetError(
            f"asked to remove {count} heads, but only {available} may go (min_heads_per_layer = {min_heads_per_layer}, "
            f"{len(protected)} freshly grown heads protected{together}). {way_out}",
            key,
        )
    if budget == "per_layer":
        lost = (since or head_map).present.sum(1) - present.sum(1)
        rows = _equal_shares(rows, scores, count, lost.tolist(), asked_by)
    ranked = sorted((u for row in rows for u in row), key=lambda u: rank(scores, u))
    return _filled(ranked, count, unit, asked_by)


def check_absent(head_map: HeadMap, count: int, *, asked_by: str) -> None:
    """Check that so many heads can be grown.

    Args:
        asked_by: the setting of the job that the count comes from.

    Raises:
        BudgetError: fewer are absent.
    """
    absent = head_map.grown.size - head_map.active
    if count > absent:
        raise BudgetError(f"asked to grow {count} heads, but only {absent} are absent. Lower {asked_by}.", asked_by)


def _above(floor: int, units: list[list[Unit]], head_map: HeadMap) -> list[list[Unit]]:
    """Cut each layer's units, [layer][unit], to those that leave it `floor` heads."""
    spare = head_map.present.sum(1) - floor
    return [
        [unit for unit, total in zip(row, accumulate(map(len, row)), strict=True) if total <= spare[layer]]
        for layer, row in enumerate(units)
    ]


def _heads_in(rows: list[list[Unit]]) -> int:
    return sum(len(unit) for row in rows for unit in row)


def _filled(ranked: list[Unit], count: int, unit: UnitKind, asked_by: str) -> list[Slot]:
    """Take units in order, but none that would be too much."""
    taken: list[Slot] = []
    for slots in ranked:
        if len(taken) + len(slots) <= count:
            taken += slots
    if len(taken) < count:
        sizes = " or ".join(map(str, sorted({len(slots) for slots in ranked})))
        raise BudgetError(
            f"asked to remove {count} heads, but cycle.prune.unit = {unit} removes {sizes} at once: {len(taken)} is "
            f"the nearest that it can. Change {asked_by} to a multiple, or set cycle.prune.unit: head.",
            asked_by,
        )
    return taken


def _equal_shares(
    rows: list[list[Unit]], scores: Array, count: int, lost: list[int], asked_by: str
) -> list[list[Unit]]:  # fmt: skip
    """Cut each layer's units to its share; what does not divide goes where the next unit scores lowest."""
    sizes = {len(unit) for row in rows for unit in row}
    if len(sizes) > 1:
        raise TrialError(
            "an equal share of key/value groups of different sizes is not defined. "
            "Set cycle.prune.budget: global, or cycle.prune.unit: head."
        )
    size = max(sizes, default=1)
    gone = [heads // size for heads in lost]
    each, rest = divmod(count // size + sum(gone), len(rows))
    due = [max(0, each - before) for before in gone]
    way_out = f"Lower {asked_by}, or set cycle.prune.budget: global."
    short = [layer for layer, row in enumerate(rows) if len(row) < due[layer]]
    if short:
        raise BudgetError(
            f"an equal share is {each * size} heads a layer, but layer {short[0]} can only lose "
            f"{(len(rows[short[0]]) + gone[short[0]]) * size}. {way_out}",
            asked_by,
        )
    rest -= sum(before > each for before in gone)  # layers that had theirs in an earlier round
    following = sorted(
        (row[due[layer]] for layer, row in enumerate(rows) if gone[layer] <= each and len(row) > due[layer]),
        key=lambda unit: rank(scores, unit),
    )
    if len(following) < rest:
        raise BudgetError(
            f"{rest} layers must lose {(each + 1) * size} heads, but only {len(following)} can. {way_out}", asked_by
        )
    extra = {unit[0][0] for unit in following[:rest]}
    return [row[: due[layer] + (layer in extra)] for layer, row in enumerate(rows)]
