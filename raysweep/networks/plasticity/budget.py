"""Exact budgets: which heads go, given their scores. A budget that cannot be met is an error, never a shortfall."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from itertools import accumulate

import numpy as np

from raysweep.contracts import Array, Slot
from raysweep.errors import BudgetError, TrialError
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.units import Unit, UnitKind, rank, removable_units


def share(fraction: float, total: int) -> int:
    """Return fraction * total, rounded half up (0.5 of 5 is 3)."""
    # Rounded to nine digits first: 0.145 * 100 is 14.499999999999998 in floating point and would round down.
    # Python's own `round` is no choice, because it rounds half to even.
    return math.floor(round(fraction * total, 9) + 0.5)


def round_counts(count: int, rounds: int, size: int = 1) -> list[int]:
    """Split a count into rounds as even as whole units of `size` heads allow; empty rounds are left out."""
    # Differences of rounded running totals: rounding errors cannot add up, and the last bound is the count
    # itself.
    bounds = [share(done / rounds, count // size) * size for done in range(rounds)] + [count]
    return [stop - start for start, stop in zip(bounds, bounds[1:], strict=False) if stop > start] or [0]


def lowest_heads(
    scores: Array, head_map: HeadMap, count: int, *, budget: str, min_heads_per_layer: int, protected: Set[Slot],
    unit: UnitKind = "head", groups: int | None = None, since: HeadMap | None = None,
    asked_by: str = "cycle.prune.level",
) -> list[Slot]:  # fmt: skip
    """Return the `count` present heads to remove, lowest score first; ties go by (layer, head).

    Args:
        scores: [layers][heads]; absent heads are ignored.
        budget: `global`, or `per_layer` for an equal share per layer (the remainder goes to the layers whose next
            head scores lowest).
        protected: heads that may not go, such as freshly grown ones.
        unit: what goes together; see `units.removable_units`. A unit's score is the mean of its heads'.
        groups: key/value heads of a layer. Default: one for each head.
        since: the heads before the first of several rounds, over which `per_layer` shares are equal. Default: now.
        asked_by: the setting of the job that the count comes from, for messages.

    Raises:
        BudgetError: fewer heads may go than asked, or units do not add up to the count.
        TrialError: a score is not finite.
    """
    if not np.isfinite(scores[head_map.present]).all():
        raise TrialError("a head score is not finite; nothing can be ranked by it.")
    groups = groups or scores.shape[1]
    units = [
        removable_units(scores, head_map, layer, kind=unit, groups=groups, protected=protected)
        for layer in range(len(scores))
    ]
    rows = _above(min_heads_per_layer, units, head_map)
    available = _heads_in(rows)
    if count > available:
        # The floor is the setting to change if one head a layer would do; otherwise the count is.
        floor_is_it = count <= _heads_in(_above(1, units, head_map))
        keys = ["cycle.prune.min_heads_per_layer", asked_by] if floor_is_it else [asked_by]
        limits = f"min_heads_per_layer = {min_heads_per_layer}, {len(protected)} freshly grown heads protected"
        raise _too_few(count, available, limits, keys, unit, groups)
    if budget == "per_layer":
        lost = (since or head_map).present.sum(1) - head_map.present.sum(1)
        rows = _equal_shares(rows, scores, count, lost.tolist(), asked_by)
    return _filled(rows, scores, count, unit, asked_by)


def check_absent(head_map: HeadMap, count: int, *, asked_by: str) -> None:
    """Check that enough heads are absent to grow `count` of them.

    Args:
        asked_by: the setting of the job that the count comes from.

    Raises:
        BudgetError: fewer are absent.
    """
    absent = head_map.grown.size - head_map.active
    if count > absent:
        raise BudgetError(f"asked to grow {count} heads, but only {absent} are absent. Lower {asked_by}.", asked_by)


def _too_few(
    count: int, available: int, limits: str, keys: Sequence[str], unit: UnitKind, groups: int
) -> BudgetError:  # fmt: skip
    together = "" if unit == "head" else f", cycle.prune.unit = {unit} with {groups} key/value heads a layer"
    way_out = f"Lower {' or '.join(keys)}" + ("." if unit == "head" else ", or set cycle.prune.unit: head.")
    return BudgetError(
        f"asked to remove {count} heads, but only {available} may go ({limits}{together}). {way_out}", keys[0]
    )


def _above(floor: int, units: list[list[Unit]], head_map: HeadMap) -> list[list[Unit]]:
    """Cut each layer's units, [layer][unit], to the first ones that leave it `floor` heads."""
    # Units are ordered by score, so the running total of their sizes says where the layer reaches its floor.
    spare = head_map.present.sum(1) - floor
    return [
        [unit for unit, total in zip(row, accumulate(map(len, row)), strict=True) if total <= spare[layer]]
        for layer, row in enumerate(units)
    ]


def _heads_in(rows: list[list[Unit]]) -> int:
    return sum(len(unit) for row in rows for unit in row)


def _filled(rows: list[list[Unit]], scores: Array, count: int, unit: UnitKind, asked_by: str) -> list[Slot]:
    """Take units, lowest score first; skip any that would exceed the count."""
    ranked = sorted((slots for row in rows for slots in row), key=lambda slots: rank(scores, slots))
    taken: list[Slot] = []
    for slots in ranked:
        if len(taken) + len(slots) <= count:
            taken += slots
    # Possible only with units of several heads: single heads always add up, as enough of them were available.
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
    """Cut each layer's units to its equal share; the remainder goes to layers whose next unit scores lowest."""
    sizes = {len(unit) for row in rows for unit in row}
    if len(sizes) > 1:
        raise TrialError(
            "an equal share of key/value groups of different sizes is not defined. "
            "Set cycle.prune.budget: global, or cycle.prune.unit: head."
        )
    # Shares are equal over all rounds of a prune: what each layer lost in earlier rounds counts as part of its
    # share. A layer that lost more than its share (an extra unit of an earlier remainder) owes nothing now.
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
    # Layers that lost one more than the share had their unit of the remainder in an earlier round.
    rest -= sum(before > each for before in gone)
    # Candidates for the remainder: the next unit of every layer that had no extra one yet, lowest score first.
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
