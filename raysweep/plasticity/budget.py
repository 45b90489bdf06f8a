"""Exact budgets: how many heads, and which ones, given scores. Infeasible is an error, never a shortfall."""

from __future__ import annotations

import math

import numpy as np

from raysweep.contracts import Array, Slot
from raysweep.errors import TrialError
from raysweep.plasticity.head_map import HeadMap


def share(fraction: float, total: int) -> int:
    """Return fraction * total, rounded half up (0.5 of 5 is 3)."""
    return math.floor(round(fraction * total, 9) + 0.5)


def lowest_heads(
    scores: Array, head_map: HeadMap, count: int, *, budget: str, min_heads_per_layer: int, protected: set[Slot]
) -> list[Slot]:
    """Return the `count` present heads to remove, lowest score first.

    Ties go by (layer, head). Scores are rounded to nine digits first, so that the sum order of a distributed probe
    cannot change the plan.

    Args:
        scores: [layers][heads]; absent heads are ignored.
        budget: `global`, or `per_layer` for an equal share per layer (the remainder goes to the layers whose next
            head scores lowest).
        protected: heads that may not go, such as freshly grown ones.

    Raises:
        TrialError: fewer heads may go than asked, or a score is not finite.
    """
    present = head_map.present
    if not np.isfinite(scores[present]).all():
        raise TrialError("a head score is not finite; nothing can be ranked by it.")
    rows: list[list[Slot]] = []
    for layer in range(scores.shape[0]):
        candidates = [
            (layer, int(head)) for head in np.flatnonzero(present[layer]) if (layer, int(head)) not in protected
        ]
        candidates.sort(key=lambda slot: _rank(scores, slot))
        spare = int(present[layer].sum()) - min_heads_per_layer
        rows.append(candidates[: max(0, spare)])
    available = sum(map(len, rows))
    if count > available:
        raise TrialError(
            f"asked to remove {count} heads, but only {available} may go (min_heads_per_layer = {min_heads_per_layer}, "
            f"{len(protected)} freshly grown heads protected). Lower cycle.prune.level."
        )
    if budget == "per_layer":
        rows = _equal_shares(rows, scores, count)
    ranked = sorted((slot for row in rows for slot in row), key=lambda slot: _rank(scores, slot))
    return ranked[:count]


def _equal_shares(rows: list[list[Slot]], scores: Array, count: int) -> list[list[Slot]]:
    """Cut each layer's candidates to its share; what does not divide goes where the next head scores lowest."""
    each, rest = divmod(count, len(rows))
    short = [layer for layer, row in enumerate(rows) if len(row) < each]
    if short:
        raise TrialError(
            f"an equal share is {each} heads a layer, but layer {short[0]} can only lose {len(rows[short[0]])}."
        )
    following = sorted((row[each] for row in rows if len(row) > each), key=lambda slot: _rank(scores, slot))
    if len(following) < rest:
        raise TrialError(f"{rest} layers must lose {each + 1} heads, but only {len(following)} can.")
    extra = {layer for layer, _ in following[:rest]}
    return [row[: each + (layer in extra)] for layer, row in enumerate(rows)]


def _rank(scores: Array, slot: Slot) -> tuple[float, int, int]:
    return (float(f"{scores[slot]:.9e}"), *slot)
