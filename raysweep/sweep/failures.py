"""Tell from the trials so far whether a point would fail by its values: whether most of those nearest to it did.

Samplers learn from failures, but what they propose is blurred: near the best points, which often lie at the edge of
what works, half of it would fall over the edge. A parameter counts by how well it alone tells failures from other
trials, so that the nearest trials are those with equal values of what matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raysweep.contracts import Array
from raysweep.job.parameter import Parameter
from raysweep.job.space import Space

NEAREST = 3
"""Ended trials that a point is judged by."""
SHARPNESS = 4
"""Power of a parameter's separation that it is weighed by: those that tell failures by chance only hardly count."""
LATEST = 1000
"""Ended trials that are looked at, so that a point of a sweep of any size is judged in a millisecond."""
ABSENT = -2.0
"""Place of a parameter that does not exist in a trial: as far from any value as two values can be."""


class Failures:
    """The ended trials of a sweep that say something about their values, and which of them failed by these."""

    def __init__(self, space: Space) -> None:
        self._parameters = space.parameters
        self._places: list[list[float]] = []
        self._failed: list[bool] = []
        self._weights: Array | None = None
        """Of the parameters; None: to be worked out anew."""

    def add(self, values: Mapping[str, Any], *, failed: bool) -> None:
        """Note how a trial ended."""
        self._places.append(self._place(values))
        self._failed.append(failed)
        self._weights = None

    def expects(self, values: Mapping[str, Any]) -> bool:
        """Return whether most of the trials nearest to a point failed."""
        failed = np.array(self._failed[-LATEST:])
        if len(failed) < NEAREST or not failed.any():
            return False
        places = np.array(self._places[-LATEST:])
        if self._weights is None:
            self._weights = np.array([_separation(column[failed], column[~failed]) for column in places.T]) ** SHARPNESS
        # No two values are further apart than the ends of a range; different choices are as far.
        apart = np.minimum(np.abs(places - self._place(values)), 1.0)
        nearest = np.argsort(apart**2 @ self._weights, kind="stable")[:NEAREST]
        return bool(2 * failed[nearest].sum() > NEAREST)

    def _place(self, values: Mapping[str, Any]) -> list[float]:
        return [_place(one, values[one.path]) if one.path in values else ABSENT for one in self._parameters]


def _place(parameter: Parameter, value: Any) -> float:
    """Return where a value lies: a share of its range, or the index of a choice."""
    if parameter.form != "choice":
        return parameter.share(value)
    # By repr, because 1, 1.0 and True are equal in Python but different choices.
    return float(list(map(repr, parameter.choices)).index(repr(value)))


def _separation(failed: Array, others: Array) -> float:
    """Return how well a parameter tells failures from other trials: the Kolmogorov-Smirnov statistic, from 0 to 1."""
    if not len(others):
        return 1.0
    values = np.unique(np.concatenate([failed, others]))
    shares = [np.searchsorted(np.sort(some), values, side="right") / len(some) for some in (failed, others)]
    return float(np.abs(shares[0] - shares[1]).max())
