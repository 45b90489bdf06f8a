"""Means over seeds, and paired differences, with their uncertainty. Pure.

Intervals are Student's, so they take the numbers to be normally distributed. The test of paired differences is an exact
sign flip where it can find anything at 0.05, which takes 6 pairs, and Student's t where there are fewer; it says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from scipy import special

CONFIDENCE = 0.95
FEWEST_FLIPPED = 6
"""2 / 2^5 is above 0.05: with fewer pairs, no exact sign flip could be significant."""
MOST_FLIPPED = 16
"""2^16 sums are added up at once; above that Student's t is as good."""
ROUNDING = 1e-12
"""Relative difference below which two sums are one."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean, and the interval that holds the true one with 95% confidence; none of one number, or of infinite ones."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of paired differences, and how likely one so large is where there is none."""

    mean: float
    low: float | None
    high: float | None
    count: int
    p_value: float | None
    """Two-sided; None where there is no interval."""
    test: Literal["sign_flip", "t"] | None


def mean_of(numbers: Sequence[float]) -> Mean:
    """Return the mean of at least one number."""
    mean, half = fmean(numbers), _half_width(numbers)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Mean(mean=mean, low=low, high=high, count=len(numbers))


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Return by how much `one` is above `other`, paired by seed; None where they share no seed."""
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if not differences:
        return None
    test, p_value = _test(differences)
    return Difference(**asdict(mean_of(differences)), p_value=p_value, test=test)


def _half_width(numbers: Sequence[float]) -> float | None:
    """Return half of the interval's width, None where it has none."""
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        return None
    quantile = special.stdtrit(len(numbers) - 1, (1 + CONFIDENCE) / 2)
    return float(quantile * stdev(numbers) / math.sqrt(len(numbers)))


def _test(differences: Sequence[float]) -> tuple[Literal["sign_flip", "t"] | None, float | None]:
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None, None
    # Without any spread t is no number, however few there are.
    if FEWEST_FLIPPED <= len(differences) <= MOST_FLIPPED or len(set(differences)) == 1:
        return "sign_flip", _sign_flip(differences)
    return "t", _student(differences)


def _sign_flip(differences: Sequence[float]) -> float:
    """Return the share of all choices of signs under which the sum is at least as far from 0."""
    count, total = len(differences), abs(math.fsum(differences))
    if len(set(differences)) == 1:
        return 2.0 ** (1 - count) if total else 1.0
    signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    sums = np.abs(signs @ np.array(differences))
    return float((sums >= total * (1 - ROUNDING)).mean())


def _student(differences: Sequence[float]) -> float:
    t = fmean(differences) / (stdev(differences) / math.sqrt(len(differences)))
    return float(2 * special.stdtr(len(differences) - 1, -abs(t)))
