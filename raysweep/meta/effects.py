"""What each choice of a strategy adds to a trial's score: a Bayesian linear regression in closed form. Pure.

A trial's score is the sum of an effect of each of its choices, of each pair of its strategies, of its settings, and of
noise. A strategy is thus credited with its own effect, whichever strategies it was combined with; what only a pair does
is credited to the pair, and what a setting does to the setting. Scores are ranks turned into quantiles of a normal
distribution, so only the order of trials counts, never the unit of their objective.

Source: the conjugate normal-inverse-gamma model, e.g. Murphy, "Machine Learning" (2012), section 7.6.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
from scipy import linalg, special, stats

from raysweep.contracts import Array
from raysweep.job.parameter import Parameter

Column = tuple[Any, ...]
"""() for the constant, (path, repr of the choice), a pair of such choices, or (path, degree) of a range."""

# A pair's variance is a quarter of a single choice's: the prior expects strategies to add up, and leaves it
# to trials to show that two of them interact.
STRATEGY, PAIR, SETTING = 1.0, 0.25, 0.5
"""Prior variance of the effect of a strategy's choice, of a pair of choices, and of a setting, in units of the noise's
variance."""
SHAPE, SCALE = 2.0, 0.5
"""Of the inverse gamma prior of the noise's variance. Its mean, SCALE / (SHAPE - 1), is 0.5: half the variance of the
scores, which is 1."""


def normal_scores(standings: Sequence[Any]) -> Array:
    """Return a score for each trial, (trials,): the lower its standing, the higher. Equal standings have equal scores.

    Blom's approximation to the expected order statistics of a normal distribution (1958).
    """
    # `standings` are compared as they are (tuples, too), so they become places first, the worst lowest.
    place = {standing: at for at, standing in enumerate(sorted(set(standings), reverse=True))}
    ranks = stats.rankdata([place[standing] for standing in standings])
    # 3/8 and 1/4 are Blom's constants; they also keep the shares inside (0, 1), where the quantile is finite.
    return np.asarray(special.ndtri((ranks - 0.375) / (len(standings) + 0.25)), dtype=np.float64)


class Effects:
    """The columns of the regression: a constant, then effects of choices, of pairs of strategies, and of settings.

    Args:
        parameters: those of the space; ranges have a linear and a quadratic effect.
        strategies: paths of the choices that are strategies: only their pairs have effects.
    """

    def __init__(self, parameters: Sequence[Parameter], strategies: Sequence[str]) -> None:
        self._parameters, self._strategies = {one.path: one for one in parameters}, set(strategies)
        # By repr, because choices may be of any plain type, and 1, 1.0 and True would be equal keys.
        choices = [(one.path, repr(choice)) for one in parameters for choice in one.choices]
        decided = [choice for choice in choices if choice[0] in self._strategies]
        # Two choices of the same parameter never meet in a trial.
        pairs = [pair for pair in combinations(decided, 2) if pair[0][0] != pair[1][0]]
        ranges = [(one.path, degree) for one in parameters if not one.choices for degree in (1, 2)]
        variances: dict[Column, float] = {(): 1.0}
        variances |= {choice: STRATEGY if choice[0] in self._strategies else SETTING for choice in choices}
        variances |= dict.fromkeys(pairs, PAIR) | dict.fromkeys(ranges, SETTING)
        self._at = {column: at for at, column in enumerate(variances)}
        self.variances: Array = np.array(list(variances.values()))
        """Prior variance of each column's effect, in units of the noise's: (columns,)."""

    def rows(self, points: Sequence[Mapping[str, Any]]) -> Array:
        """Return the regression's rows, (points, columns); 0 in the columns of parameters that a point lacks."""
        rows = np.zeros((len(points), len(self._at)))
        for row, values in zip(rows, points, strict=True):
            for column, value in self._entries(values):
                row[self._at[column]] = value
        return rows

    def _entries(self, values: Mapping[str, Any]) -> Iterator[tuple[Column, float]]:
        """Yield the non-zero entries of a point's row."""
        yield (), 1.0
        decided = []
        for path, parameter in self._parameters.items():
            if path not in values:
                continue
            if parameter.choices:
                column = (path, repr(values[path]))
                decided += [column] if path in self._strategies else []
                yield column, 1.0
            else:
                # Legendre polynomials P_1 and P_2 on [-1, 1], scaled to variance 1 over the range: the
                # prior then means the same for every range, and the two effects are uncorrelated.
                place = 2 * parameter.share(values[path]) - 1
                yield (path, 1), sqrt(3) * place
                yield (path, 2), sqrt(5) * (3 * place**2 - 1) / 2
        for pair in combinations(decided, 2):
            yield pair, 1.0


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Posterior of all effects: normal with covariance v * `covariance`, v inverse gamma with `shape` and `scale`."""

    mean: Array
    """(columns,)"""
    covariance: Array
    """(columns, columns)"""
    shape: float
    scale: float

    def draw(self, count: int, generator: np.random.Generator) -> Array:
        """Draw effects, (count, columns)."""
        # If g is gamma distributed with that shape, scale / g is inverse gamma distributed. Each draw has a
        # noise variance of its own, which makes the effects t-distributed.
        variances = self.scale / generator.gamma(self.shape, size=count)
        normal = generator.standard_normal((count, len(self.mean)))
        # scipy's factor is upper triangular, U^T U = covariance, so rows of `normal` are multiplied by U
        # from the right.
        return self.mean + np.sqrt(variances)[:, None] * (normal @ linalg.cholesky(self.covariance))


def posterior(rows: Array, scores: Array, variances: Array) -> Posterior:
    """Return the posterior of the effects.

    Args:
        rows: of the regression, (trials, columns).
        scores: of the trials, (trials,).
        variances: prior variances of the effects, (columns,).
    """
    # With fewer trials than columns `rows.T @ rows` is singular;
    # the prior's diagonal makes the sum positive definite.
    precision = np.diag(1 / variances) + rows.T @ rows
    covariance = linalg.inv(precision)
    mean = covariance @ rows.T @ scores
    # The part of the scores' squares that the effects do not explain: zero at least, but for rounding.
    left = scores @ scores - mean @ precision @ mean
    return Posterior(mean=mean, covariance=covariance, shape=SHAPE + len(scores) / 2, scale=SCALE + max(left, 0.0) / 2)


def top_two(draws: Array, leader_share: float, generator: np.random.Generator) -> int:
    """Return the arm to try next, by top-two Thompson sampling.

    With probability `leader_share` it is the leader, the best arm of the first draw; else the challenger, the best
    arm of the next draw whose best arm is another one (Russo, "Simple Bayesian algorithms for best-arm
    identification", 2020).

    Args:
        draws: the worth of each arm in each of many draws, (draws, arms).
    """
    best = draws.argmax(axis=1)
    leader = int(best[0])
    if generator.random() < leader_share or draws.shape[1] == 1:
        return leader
    # If the leader is the best of all draws, the second best of the first draw stands in for a challenger.
    others = best[best != leader]
    return int(others[0] if len(others) else np.argsort(draws[0])[-2])
