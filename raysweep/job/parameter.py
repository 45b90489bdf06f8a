"""One dimension of a search space: a choice of plain values or a range of numbers, perhaps under a condition.

Two trials share a phase only if they agree on everything before it, and two draws from a continuous range never agree.
Ranges of phases before learning (EARLY) are therefore quantised by default; see entries.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Scalar = str | int | float | bool | None

EARLY = ("model.", "data.", "training.", "cycle.baseline.", "cycle.prune.", "cycle.measure.", "cycle.grow.")
"""Prefixes of the settings of all phases before learning."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """When a parameter exists: another setting has one of the values `among`, or lies between `above` and `below`."""

    path: str
    among: tuple[Scalar, ...] | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        """Return whether a value of the other setting meets the condition; the bounds themselves do not."""
        if self.among is not None:
            return value in self.among
        # A bound on a text or on true and false is not an error: at such a point the parameter does not exist.
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A choice of plain values, or the numbers from `low` to `high`: all, or evenly spaced ones with both ends."""

    path: str
    form: Literal["choice", "uniform", "log_uniform", "integer"]
    choices: tuple[Scalar, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    """Distance between neighbouring values, of the logarithm for log_uniform; None for a continuous range."""
    by_default: bool = False
    """Whether the step was chosen here, because a range of an early phase named none."""
    conditions: tuple[Condition, ...] = ()

    @property
    def count(self) -> int | None:
        """Number of its values; None where it is continuous."""
        if self.form == "choice":
            return len(self.choices)
        # Rounded, because the division of floating-point numbers falls just above or below the whole number.
        return None if self.step is None else round(self._width / self.step) + 1

    @property
    def quantised(self) -> bool:
        """Whether it has a finite number of values, so that trials can share the phases which depend on it."""
        return self.count is not None

    @property
    def _width(self) -> float:
        """Length of the range, of its logarithm for log_uniform."""
        return math.log(self.high / self.low) if self.form == "log_uniform" else self.high - self.low

    def value(self, index: int) -> Scalar:
        """Return the value of a quantised parameter at an index, the lowest value first."""
        return self.choices[index] if self.form == "choice" else self._number(index)

    def _number(self, index: int) -> float | int:
        assert self.step is not None and self.count is not None
        # The ends are returned as they were written: computed, they could lie just outside the range.
        if index in (0, self.count - 1):
            return self._typed(self.high if index else self.low)
        moved = index * self.step
        number = self.low * math.exp(moved) if self.form == "log_uniform" else self.low + moved
        # Rounded to 12 digits: 0.30000000000000004 would be another phase than 0.3, and nothing would be shared.
        return self._typed(float(f"{number:.12g}"))

    def at(self, share: float) -> Scalar:
        """Return the value at a share of the range, in [0, 1); every value of a quantised one covers an equal share."""
        if self.count is not None:
            return self.value(int(share * self.count))
        return (
            self.low * math.exp(share * self._width) if self.form == "log_uniform" else self.low + share * self._width
        )

    def share(self, value: float) -> float:
        """Return the share of a range at which a value lies: the inverse of `at`."""
        if self.count is not None:
            # The middle of the share that the value covers, so that rounding cannot lead to its neighbour.
            return (self._index(value) + 0.5) / self.count
        return self._moved(value) / self._width

    def corners(self) -> tuple[Scalar, ...]:
        """Return every choice; of a range both ends and a value inside."""
        if self.form == "choice":
            return self.choices
        # The value inside finds settings that take the ends alone, such as a share that is 0 or 1. Dividing by pi
        # makes it a number that is not round: a setting that takes whole numbers only is found, too.
        inside = self.value(1) if self.quantised else self.nearest(self.low + (self.high - self.low) / math.pi)
        # dict.fromkeys drops equal corners of a narrow range and keeps their order.
        return tuple(dict.fromkeys((self.nearest(self.low), inside, self.nearest(self.high))))

    def nearest(self, value: float) -> float | int:
        """Return the value of the range that is nearest to a number, which may lie outside."""
        value = min(max(value, self.low), self.high)
        return value if self.step is None else self._number(self._index(value))

    def has(self, value: Any) -> bool:
        """Return whether the parameter can have a value."""
        if self.form == "choice":
            # To Python 1 equals True; in a job they are different values.
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices
            )
        return isinstance(value, int | float) and not isinstance(value, bool) and self.nearest(value) == value

    def meeting(self, conditions: Sequence[Condition]) -> list[Scalar]:
        """Return values of this parameter that meet all conditions on it, corners first; none where nothing can."""
        # Every choice is a corner, so the candidates below are for ranges, which cannot be tried value by value.
        tried = list(self.corners())
        if self.form != "choice":
            low = max([self.low, *(c.above for c in conditions if c.above is not None)])
            high = min([self.high, *(c.below for c in conditions if c.below is not None)])
            # Bounds leave an interval; if any value lies inside, the one nearest to its middle does.
            tried.append(self.nearest((low + high) / 2))
        if self.form != "choice" and self.quantised:
            # A condition can also name values of the range; they are met exactly, or by no value at all.
            named = (value for c in conditions for value in c.among or ())
            tried += [self.nearest(value) for value in named if isinstance(value, int | float)]
        return [value for value in tried if all(condition.holds(value) for condition in conditions)]

    def described(self) -> str:
        """Return its values in words, for a message."""
        if self.form == "choice":
            return ", ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}"

    def _index(self, value: float) -> int:
        """Return the index of the value that is nearest to a number."""
        assert self.step is not None and self.count is not None
        return min(max(round(self._moved(value) / self.step), 0), self.count - 1)

    def _moved(self, value: float) -> float:
        """Return the distance of a number from the low end, of the logarithms for log_uniform."""
        return math.log(value / self.low) if self.form == "log_uniform" else value - self.low

    def _typed(self, number: float) -> float | int:
        return int(number) if self.form == "integer" else number
