"""The worst results so far, and what is worse still: how a trial that failed by its values looks to a sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MARGIN = 0.1
"""By how much a failure is worse than the worst result, as a share of the distance from the best to the worst. Much
more would flatten all differences between results in the eyes of a model that is fitted to them."""


@dataclass(kw_only=True)
class _Range:
    """The lowest and the highest finite value so far."""

    low: float = math.inf
    high: float = -math.inf

    def note(self, value: float) -> bool:
        """Take in a value; return whether the range is another one now."""
        if not math.isfinite(value) or self.low <= value <= self.high:
            return False
        self.low, self.high = min(self.low, value), max(self.high, value)
        return True

    def beyond(self) -> float:
        """Return a value above all."""
        if self.high < self.low:
            return 1.0
        # Where all values are equal, their size stands for the distance between them.
        return self.high + MARGIN * ((self.high - self.low) or abs(self.high) or 1.0)


class Worst:
    """The range of each objective, and the largest violation of each constraint.

    Args:
        objectives: how many there are. All are minimized.
    """

    def __init__(self, objectives: int) -> None:
        self._objectives = [_Range() for _ in range(objectives)]
        self._misses: dict[str, _Range] = {}

    def note(self, objectives: Sequence[float], misses: Mapping[str, float]) -> bool:
        """Take in a result; return whether what is worse than all has changed."""
        ranges = zip(self._objectives, objectives, strict=False)
        changed = [known.note(value) for known, value in ranges]
        for name, miss in misses.items():
            changed.append(name not in self._misses)
            # A violation is above 0, and so is the worst.
            changed.append(self._misses.setdefault(name, _Range(low=0.0, high=0.0)).note(abs(miss)))
        return any(changed)

    @property
    def objectives(self) -> tuple[float, ...]:
        """Objectives worse than those of every result."""
        return tuple(known.beyond() for known in self._objectives)

    @property
    def misses(self) -> dict[str, float]:
        """Constraint -> a violation larger than that of every result."""
        return {name: known.beyond() for name, known in self._misses.items()}

    def finite(self, constraint: str, miss: float) -> float:
        """Clip an infinite violation to the largest finite one; a huge constant would flatten the others."""
        return miss if math.isfinite(miss) else math.copysign(self._misses[constraint].high or 1.0, miss)
