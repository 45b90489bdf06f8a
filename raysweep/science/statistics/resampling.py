"""Intervals and tests that respect that tokens of one sequence are not independent: whole sequences are resampled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from raysweep.contracts import Array, Mask
from raysweep.errors import DataError
from raysweep.science.statistics.finding import Comparison, Interval

RESAMPLES = 2000
SIGN_FLIPS = 20_000
"""Enough for one effect to be found among a thousand comparisons."""
FEWEST_SEQUENCES = 6
"""With n sequences no two-sided p-value of sign flips is below 2 / 2^n: 0.03 with 6, but 0.06 with 5."""
Ints = npt.NDArray[np.int64]
CONFIDENCE = 0.95
PERCENTILES = (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2)
ROUNDING = 1e-12
"""Relative difference below which two statistics are one."""


def totals(values: Array, sequences: Ints) -> tuple[Array, Array]:
    """Return the sum of each sequence's values, (sequences, ...), and their number, (sequences,).

    Args:
        values: (tokens, ...); sequences: (tokens,), which sequence each is of.
    """
    _, index = np.unique(sequences, return_inverse=True)
    counts = np.bincount(index).astype(float)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums, counts


def bootstrap_means(values: Array, sequences: Ints, generator: np.random.Generator) -> tuple[Array, Array]:
    """Return the means over tokens, (...), and those of bootstrap samples of whole sequences, (RESAMPLES, ...).

    Args:
        values: (tokens, ...); sequences: (tokens,).
    """
    sums, counts = totals(np.asarray(values, float), sequences)
    number = len(counts)
    drawn = generator.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(float)
    flat = sums.reshape(number, -1)
    means = (drawn @ flat) / (drawn @ counts)[:, None]
    return sums.sum(0) / counts.sum(), means.reshape(RESAMPLES, *sums.shape[1:])


def interval(values: Array, sequences: Ints, generator: np.random.Generator) -> Interval:
    """Return the mean of values (tokens,) with its interval, bootstrapped by sequence."""
    mean, drawn = bootstrap_means(values, sequences, generator)
    low, high = np.percentile(drawn, PERCENTILES)
    return Interval(mean=float(mean), low=float(low), high=float(high))


def intervals(values: Array, sequences: Ints, generator: np.random.Generator) -> list[Interval]:
    """Return the mean of each column of values (tokens, columns), all from the same bootstrap samples."""
    means, drawn = bootstrap_means(values, sequences, generator)
    low, high = np.percentile(drawn, PERCENTILES, axis=0)
    return [
        Interval(mean=float(mean), low=float(below), high=float(above))
        for mean, below, above in zip(means, low, high, strict=True)
    ]


def paired(name: str, differences: Array, sequences: Ints, generator: np.random.Generator) -> Comparison:
    """Test whether paired differences (tokens,) have mean 0, by random sign flips of whole sequences.

    The interval is bootstrapped by sequence. NaN differences are an error of the caller.
    """
    mean = interval(differences, sequences, generator)
    sums, _ = totals(np.asarray(differences, float), sequences)
    signs = generator.choice([-1.0, 1.0], size=(SIGN_FLIPS, len(sums)))
    p_value = share_as_extreme(abs(float(sums.sum())), np.abs(signs @ sums))
    return Comparison(
        name=name, effect=mean.mean, low=mean.low, high=mean.high, p_value=p_value, count=len(sums)
    )  # fmt: skip


def contrast(
    name: str, values: Array, ones: Mask, others: Mask, sequences: Ints, generator: np.random.Generator
) -> Comparison:
    """Test whether two groups of tokens, `ones` and `others` of shape (tokens,), have the same mean value.

    Each token is given its influence on the difference of the means (Hampel 1974), and those are tested as `paired`
    does, so that what tokens of one sequence share does not count as evidence.

    Raises:
        DataError: a group is empty.
    """
    for group in (ones, others):
        if not group.any():
            raise DataError(f"{name}: one of the groups has no tokens. Measure on more, with --eval-tokens.")
    means = float(values[ones].mean()), float(values[others].mean())
    difference = means[0] - means[1]
    influence = ones * (values - means[0]) / ones.mean() - others * (values - means[1]) / others.mean()
    return paired(name, influence + difference, sequences, generator)


def beyond_draws(name: str, value: float, draws: Sequence[float]) -> Comparison:
    """Test whether a network's value is one more of those of networks drawn at random, taken as normal.

    The effect is the value minus their mean; its interval and p-value are Student's for one further draw (Hahn and
    Meeker 1991, section 4.6), so they take in that untrained networks differ from each other, too.
    """
    count, mean = len(draws), float(np.mean(draws))
    spread = float(np.std(draws, ddof=1)) * math.sqrt(1 + 1 / count)
    effect = value - mean
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread
    same = abs(effect) <= ROUNDING * max(1.0, abs(value))
    t = 0.0 if same else math.inf if spread == 0 else abs(effect) / spread
    return Comparison(
        name=name, effect=effect, low=effect - half, high=effect + half,
        p_value=float(2 * stats.t.sf(t, count - 1)), count=count,
    )  # fmt: skip


def share_as_extreme(observed: float, null: Array) -> float:
    """Return the p-value of a statistic under draws of its null, the observed one counted in; never 0.

    Davison and Hinkley (1997), section 4.2.
    """
    return float((1 + (null >= observed - ROUNDING * max(1.0, abs(observed))).sum()) / (1 + len(null)))


def resamples_of(sequences: Ints, generator: np.random.Generator, count: int = RESAMPLES) -> Iterator[Ints]:
    """Yield bootstrap samples as indices of tokens: whole sequences, drawn with replacement."""
    names, index = np.unique(sequences, return_inverse=True)
    members = [np.flatnonzero(index == number) for number in range(len(names))]
    for _ in range(count):
        yield np.concatenate([members[number] for number in generator.integers(len(names), size=len(names))])
