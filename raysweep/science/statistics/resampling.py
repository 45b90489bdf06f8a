"""Bootstrap intervals and randomisation tests whose unit is the sequence.

Tokens of one sequence share their text, so they are not independent: whole sequences are resampled, or have their
signs flipped. Taken as independent, tokens would give intervals that are too narrow and p-values that are too small.
"""

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
"""Bootstrap samples, and random orders, of a test."""
SIGN_FLIPS = 20_000
"""The smallest p-value is 1 / 20,001: enough for one effect to be found at 0.05 among a thousand comparisons."""
FEWEST_SEQUENCES = 6
"""With n sequences no two-sided p-value of sign flips is below 2 / 2^n: 0.03 with 6, but 0.06 with 5."""
Ints = npt.NDArray[np.int64]
CONFIDENCE = 0.95
PERCENTILES = (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2)
ROUNDING = 1e-12
"""Relative difference below which two statistics count as equal."""


def totals(values: Array, sequences: Ints) -> tuple[Array, Array]:
    """Return the sum of each sequence's values, (sequences, ...), and their number, (sequences,).

    Args:
        values: (tokens, ...).
        sequences: (tokens,), the number of the sequence that each token belongs to; numbers may have gaps.
    """
    _, index = np.unique(sequences, return_inverse=True)
    counts = np.bincount(index).astype(float)
    sums = np.zeros((len(counts), *values.shape[1:]))
    # `sums[index] += values` would keep only one of the tokens of a sequence.
    np.add.at(sums, index, values)
    return sums, counts


def bootstrap_means(values: Array, sequences: Ints, generator: np.random.Generator) -> tuple[Array, Array]:
    """Return the mean over tokens, (...), and those of bootstrap samples of whole sequences, (RESAMPLES, ...).

    Args:
        values: (tokens, ...).
        sequences: (tokens,).
    """
    sums, counts = totals(np.asarray(values, float), sequences)
    number = len(counts)
    # How often each sequence is drawn determines a sample's mean, so samples are drawn as counts: a matrix product
    # of counts and sums takes the place of gathering tokens. A sample's number of tokens varies with its sequences.
    drawn = generator.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(float)
    flat = sums.reshape(number, -1)
    means = (drawn @ flat) / (drawn @ counts)[:, None]
    return sums.sum(0) / counts.sum(), means.reshape(RESAMPLES, *sums.shape[1:])


def interval(values: Array, sequences: Ints, generator: np.random.Generator) -> Interval:
    """Return the mean of values (tokens,) with its 95% percentile interval, bootstrapped by sequence."""
    mean, drawn = bootstrap_means(values, sequences, generator)
    low, high = np.percentile(drawn, PERCENTILES)
    return Interval(mean=float(mean), low=float(low), high=float(high))


def intervals(values: Array, sequences: Ints, generator: np.random.Generator) -> list[Interval]:
    """Return the mean and interval of each column of values (tokens, columns), from the same bootstrap samples."""
    means, drawn = bootstrap_means(values, sequences, generator)
    low, high = np.percentile(drawn, PERCENTILES, axis=0)
    return [
        Interval(mean=float(mean), low=float(below), high=float(above))
        for mean, below, above in zip(means, low, high, strict=True)
    ]


def paired(name: str, differences: Array, sequences: Ints, generator: np.random.Generator) -> Comparison:
    """Test whether paired differences (tokens,) have mean 0, by random sign flips of whole sequences.

    Under the null the two conditions of a pair are exchangeable, so every sequence's sum is as likely with the other
    sign (Fisher's randomisation test). The interval is bootstrapped by sequence. Differences must not be NaN.
    """
    mean = interval(differences, sequences, generator)
    sums, _ = totals(np.asarray(differences, float), sequences)
    # Flipping signs leaves the number of tokens as it is, so that sums can stand for means.
    signs = generator.choice([-1.0, 1.0], size=(SIGN_FLIPS, len(sums)))
    p_value = share_as_extreme(abs(float(sums.sum())), np.abs(signs @ sums))
    return Comparison(
        name=name, effect=mean.mean, low=mean.low, high=mean.high, p_value=p_value, count=len(sums)
    )  # fmt: skip


def contrast(
    name: str, values: Array, ones: Mask, others: Mask, sequences: Ints, generator: np.random.Generator
) -> Comparison:
    """Test whether two groups of tokens have the same mean value.

    Each token's influence on the difference of the two means (Hampel 1974) is tested as by `paired`: tokens of both
    groups stand in the same sequences, so neither the tokens nor the groups are independent samples.

    Args:
        values: (tokens,).
        ones, others: (tokens,), the members of the groups; the effect is the mean of `ones` minus that of `others`.

    Raises:
        DataError: a group is empty.
    """
    for group in (ones, others):
        if not group.any():
            raise DataError(f"{name}: one of the groups has no tokens. Measure on more, with --eval-tokens.")
    means = float(values[ones].mean()), float(values[others].mean())
    difference = means[0] - means[1]
    # The mean of the influences is 0. The difference is added, so that their mean is the effect that is tested.
    influence = ones * (values - means[0]) / ones.mean() - others * (values - means[1]) / others.mean()
    return paired(name, influence + difference, sequences, generator)


def beyond_draws(name: str, value: float, draws: Sequence[float]) -> Comparison:
    """Test whether a network's value could be one more draw from the values of untrained networks.

    The effect is the value minus their mean. Its interval and p-value are Student's for one further draw from a normal
    distribution (Hahn and Meeker 1991, section 4.6): resampling sequences of a single untrained network would leave
    out how much untrained networks differ from each other.

    Args:
        draws: the same figure of untrained networks; at least 2.
    """
    # The square root: the spread of one further draw, plus the uncertainty of the mean of the draws.
    count, mean = len(draws), float(np.mean(draws))
    spread = float(np.std(draws, ddof=1)) * math.sqrt(1 + 1 / count)
    effect = value - mean
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread
    # Draws may all be equal, as figures that do not depend on the weights are: the spread is 0 then, and t is 0 for an
    # equal value, infinite for another.
    same = abs(effect) <= ROUNDING * max(1.0, abs(value))
    t = 0.0 if same else math.inf if spread == 0 else abs(effect) / spread
    return Comparison(
        name=name, effect=effect, low=effect - half, high=effect + half,
        p_value=float(2 * stats.t.sf(t, count - 1)), count=count,
    )  # fmt: skip


def share_as_extreme(observed: float, null: Array) -> float:
    """Return the p-value of a statistic: the share of draws of its null that are at least as large.

    The observed statistic counts as one of the draws, so that the p-value is never 0 (Davison and Hinkley 1997,
    section 4.2).

    Args:
        null: (draws,); absolute values for a two-sided test.
    """
    # Draws that equal the statistic but for the order of summation must count: without the tolerance the identical
    # arrangement could fall below it.
    return float((1 + (null >= observed - ROUNDING * max(1.0, abs(observed))).sum()) / (1 + len(null)))


def resamples_of(sequences: Ints, generator: np.random.Generator, count: int = RESAMPLES) -> Iterator[Ints]:
    """Yield bootstrap samples as indices of tokens: whole sequences, drawn with replacement.

    For statistics that are no ratio of sums, such as ranks; `bootstrap_means` is faster for means.
    """
    names, index = np.unique(sequences, return_inverse=True)
    members = [np.flatnonzero(index == number) for number in range(len(names))]
    for _ in range(count):
        yield np.concatenate([members[number] for number in generator.integers(len(names), size=len(names))])
