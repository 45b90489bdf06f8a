"""Means over seeds and paired differences, with confidence intervals and p-values.

Intervals are Student's: they assume that the numbers are normally distributed. Paired differences are tested by an
exact sign-flip test from 6 pairs on, the fewest with which it can be significant at 0.05, and by Student's t test below
that. `Difference.test` names the test.
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
"""Of n pairs the smallest p-value is 2 / 2^n: 0.0625 for 5 pairs, so a sign-flip test could never be significant."""
MOST_FLIPPED = 16
"""The test adds up 2^n sums at once; with more pairs Student's t is as good and takes no memory."""
ROUNDING = 1e-12
"""Relative difference below which two sums count as equal."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean with its 95% confidence interval; no interval for a single number, or where a number is infinite."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of paired differences with its 95% confidence interval, and the p-value of there being no difference."""

    mean: float
    low: float | None
    high: float | None
    count: int
    p_value: float | None
    """Two-sided p-value; None where there is no interval."""
    test: Literal["sign_flip", "t"] | None


def mean_of(numbers: Sequence[float]) -> Mean:
    """Return the mean of at least one number."""
    mean, half = fmean(numbers), _half_width(numbers)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Mean(mean=mean, low=low, high=high, count=len(numbers))


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Return the differences `one` - `other` of equal seeds, as a mean; None where they share no seed.

    Args:
        one: a number by seed.
        other: a number by seed.
    """
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if not differences:
        return None
    test, p_value = _test(differences)
    return Difference(**asdict(mean_of(differences)), p_value=p_value, test=test)


def _half_width(numbers: Sequence[float]) -> float | None:
    """Return half the width of the confidence interval, or None where there is no interval."""
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        return None
    # n - 1 degrees of freedom, because the standard deviation is estimated from the same numbers. The interval is
    # two-sided, so each tail holds half of what it leaves out.
    quantile = special.stdtrit(len(numbers) - 1, (1 + CONFIDENCE) / 2)
    return float(quantile * stdev(numbers) / math.sqrt(len(numbers)))


def _test(differences: Sequence[float]) -> tuple[Literal["sign_flip", "t"] | None, float | None]:
    """Return the name of the test and its two-sided p-value, or None twice where none can be made."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None, None
    # Equal differences have no spread, and t would divide by 0, so the sign-flip test is used however few they are.
    if FEWEST_FLIPPED <= len(differences) <= MOST_FLIPPED or len(set(differences)) == 1:
        return "sign_flip", _sign_flip(differences)
    return "t", _student(differences)


def _sign_flip(differences: Sequence[float]) -> float:
    """Return the share of all 2^n choices of signs under which the sum is at least as far from 0."""
    count, total = len(differences), abs(math.fsum(differences))
    if len(set(differences)) == 1:
        # Only all signs as they are, and all signs flipped, reach the sum: 2 of 2^n choices. Not enumerated, since
        # equal differences come here with any number of pairs.
        return 2.0 ** (1 - count) if total else 1.0
    # Row i holds the binary digits of i, turned from 0 and 1 into the signs 1 and -1.
    signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    sums = np.abs(signs @ np.array(differences))
    # The observed signs are among the choices: their sum must count although it may round to a little less.
    return float((sums >= total * (1 - ROUNDING)).mean())


def _student(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t test."""
    t = fmean(differences) / (stdev(differences) / math.sqrt(len(differences)))
    # Twice the lower tail: 1 - cdf(|t|) would lose all digits of a small p-value.
    return float(2 * special.stdtr(len(differences) - 1, -abs(t)))
