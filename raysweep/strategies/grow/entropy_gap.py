"""Grow where pruning tore the largest hole into a layer's distribution of attention entropy.

The gap of a layer is the Wasserstein-1 distance between the entropies that its heads had before this cycle's prune and
those of its present heads, measured now. Slots are chosen one by one: always the absent head whose entropy before the
prune closes its layer's gap most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysweep import contracts
from raysweep.contracts import HeadStatistics, Slot


@dataclass(frozen=True, kw_only=True)
class Grower(contracts.Grower):
    def __call__(self, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        before = statistics.reference_entropy
        assert before is not None
        # The entropies of each layer as they would be with the slots chosen so far.
        now = [list(row[kept]) for row, kept in zip(statistics.entropy, statistics.present, strict=True)]
        chosen: list[Slot] = []
        absent = [(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)]
        # Greedy: a chosen slot shrinks its layer's gap, so every choice looks at all gaps anew. Of equal
        # slots the first in the model is taken, hence the minus signs under max.
        while len(chosen) < count:
            slot = max(absent, key=lambda s: (_closed(before[s[0]], now[s[0]], float(before[s])), -s[0], -s[1]))
            absent.remove(slot)
            chosen.append(slot)
            # A slot that was absent before the prune too has no entropy
            # (NaN), and adds nothing to the distribution.
            if np.isfinite(before[slot]):
                now[slot[0]].append(before[slot])
        return chosen


def _closed(before: np.ndarray, now: Sequence[float], candidate: float) -> float:
    """Return by how much adding `candidate` shrinks the distance; a slot without an entropy shrinks it by 0."""
    if not np.isfinite(candidate):
        return 0.0
    whole = before[np.isfinite(before)]
    return wasserstein(whole, now) - wasserstein(whole, [*now, candidate])


def wasserstein(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Return the Wasserstein-1 distance of two samples in [0, 1]; of an empty and a filled one it is 1.

    In one dimension it is the area between the two distribution functions: integral of |F_1(x) - F_2(x)| dx.
    """
    # No distance is defined without a sample. 1 is the largest that two samples in [0, 1] can have, so a
    # layer that lost all its heads has the largest gap.
    if len(first) == 0 or len(second) == 0:
        return 0.0 if len(first) == len(second) else 1.0
    # Between neighbouring points both distribution functions are constant: the area is a sum of rectangles,
    # one less than there are points.
    points = np.sort(np.concatenate([first, second]))
    below_first = np.searchsorted(np.sort(first), points[:-1], side="right") / len(first)
    below_second = np.searchsorted(np.sort(second), points[:-1], side="right") / len(second)
    return float(np.sum(np.abs(below_first - below_second) * np.diff(points)))
