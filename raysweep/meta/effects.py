"""What each choice of a strategy adds to a trial's score: a Bayesian linear regression in closed form. Pure.

A trial's score is the sum of an effect of each choice that it made, of each pair of strategies that met in it, and of
its settings, and of noise. A strategy is thus credited with what it does itself, whatever stood beside it; what only a
pair does is left to the pair; and what a setting does is no strategy's merit. Scores are ranks turned into quantiles of
a normal distribution, so only the order of trials counts, never the unit of their objective.

Source: the conjugate normal-inverse-gamma model, e.g. Murphy, "Machine Learning" (2012), section 7.6.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg, special, stats

from raysweep.job.parameter import Parameter

Array = npt.NDArray[np.float64]
Column = tuple[Any, ...]

STRATEGY, PAIR, SETTING = 1.0, 0.25, 0.5
"""Variance of the effect of a strategy's choice, of a pair of these, and of a setting, before any trial has ended; in
units of the noise's variance, as all of them are."""
SHAPE, SCALE = 2.0, 0.5
"""Of the inverse gamma distribution of the noise's variance: half of the scores' own is expected."""


def normal_scores(standings: Sequence[Any]) -> Array:
    """Return a score for each trial, (trials,): the lower its standing, the higher. Equal standings have equal scores.

    Blom's approximation to the expected order statistics of a normal distribution (1958).
    """
    place = {standing: at for at, standing in enumerate(sorted(set(standings), reverse=True))}
    ranks = stats.rankdata([place[standing] for standing in standings])
    return np.asarray(special.ndtri((ranks - 0.375) / (len(standings) + 0.25)), dtype=np.float64)


class Effects:
    """The columns of the regression: a constant, then effects of choices, of pairs of strategies, and of settings.

    Args:
        parameters: of the space; ranges have a linear and a quadratic effect.
        strategies: paths of the choices whose pairs have effects too.
    """

    def __init__(self, parameters: Sequence[Parameter], strategies: Sequence[str]) -> None:
        self._parameters, self._strategies = {one.path: one for one in parameters}, set(strategies)
        choices = [(one.path, repr(choice)) for one in parameters for choice in one.choices]
        decided = [choice for choice in choices if choice[0] in self._strategies]
        pairs = [pair for pair in combinations(decided, 2) if pair[0][0] != pair[1][0]]
        ranges = [(one.path, degree) for one in parameters if not one.choices for degree in (1, 2)]
        variances: dict[Column, float] = {(): 1.0}
        variances |= {choice: STRATEGY if choice[0] in self._strategies else SETTING for choice in choices}
        variances |= dict.fromkeys(pairs, PAIR) | dict.fromkeys(ranges, SETTING)
        self._at = {column: at for at, column in enumerate(variances)}
        self.variances: Array = np.array(list(variances.values()))
        """Of each column's effect, beforehand, in units of the noise's: (columns,)."""

    def rows(self, points: Sequence[Mapping[str, Any]]) -> Array:
        """Return the regression's rows, (points, columns). What a point does not have adds nothing to it."""
        rows = np.zeros((len(points), len(self._at)))
        for row, values in zip(rows, points, strict=True):
            for column, value in self._entries(values):
                row[self._at[column]] = value
        return rows

    def _entries(self, values: Mapping[str, Any]) -> Iterator[tuple[Column, float]]:
        yield (), 1.0
        decided = []
        for path, parameter in self._parameters.items():
            if path not in values:
                continue
            if parameter.choices:
                column = (path, repr(values[path]))
                decided += [column] if path in self._strategies else []
                yield column, 1.0
            else:  # Legendre polynomials, of mean 0 and variance 1 over the range
                place = 2 * parameter.share(values[path]) - 1
                yield (path, 1), sqrt(3) * place
                yield (path, 2), sqrt(5) * (3 * place**2 - 1) / 2
        for pair in combinations(decided, 2):
            yield pair, 1.0


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """What is known of all effects: normal with covariance v * `covariance`, v inverse gamma of `shape` and `scale`."""

    mean: Array
    """(columns,)"""
    covariance: Array
    """(columns, columns)"""
    shape: float
    scale: float

    def draw(self, count: int, generator: np.random.Generator) -> Array:
        """Draw effects, (count, columns)."""
        variances = self.scale / generator.gamma(self.shape, size=count)
        normal = generator.standard_normal((count, len(self.mean)))
        return self.mean + np.sqrt(variances)[:, None] * (normal @ linalg.cholesky(self.covariance))


def posterior(rows: Array, scores: Array, variances: Array) -> Posterior:
    """Return what `scores`, (trials,), tell of the effects in `rows`, (trials, columns), of those variances before."""
    precision = np.diag(1 / variances) + rows.T @ rows
    covariance = linalg.inv(precision)
    mean = covariance @ rows.T @ scores
    left = scores @ scores - mean @ precision @ mean
    return Posterior(mean=mean, covariance=covariance, shape=SHAPE + len(scores) / 2, scale=SCALE + max(left, 0.0) / 2)


def top_two(draws: Array, leader_share: float, generator: np.random.Generator) -> int:
    """Return the arm to try next, by top-two Thompson sampling (Russo, "Simple Bayesian algorithms for best-arm
    identification", 2020): the best of a draw, or else the best of the next draw in which that is another one.

    Args:
        draws: what each arm is worth in each of many draws, (draws, arms).
        leader_share: probability that it is the best of the first draw.
    """
    best = draws.argmax(axis=1)
    leader = int(best[0])
    if generator.random() < leader_share or draws.shape[1] == 1:
        return leader
    others = best[best != leader]
    return int(others[0] if len(others) else np.argsort(draws[0])[-2])
