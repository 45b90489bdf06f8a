"""Measure how well a score separates wrong predictions from right ones, and how well confidences are calibrated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raysweep.contracts import Array
from raysweep.science.statistics.finding import Interval
from raysweep.science.statistics.resampling import Ints, resamples_of

FOLDS = 5
"""Of the cross-validation of `fitted_confidence`."""
BINS = 15
"""Of the calibration error, as in Guo et al. (2017)."""
RESAMPLES = 1000
"""Bootstrap samples; each ranks all tokens anew, which takes longer than a mean."""


def areas_under_roc(wrong: Array, scores: Array) -> Array:
    """Return the area under the ROC curve of each score, (scores,).

    That is the probability that a wrong prediction scores higher than a right one, ties counting half; 0.5 is chance.
    Computed by ranks (Mann and Whitney 1947).

    Args:
        wrong: (tokens,), 0 or 1, with both among them.
        scores: (scores, tokens).
    """
    # rankdata gives tied scores their mean rank, which makes each tie count half.
    positives, negatives = wrong.sum(), (1 - wrong).sum()
    ranks = rankdata(scores, axis=1)
    found: Array = (ranks @ wrong - positives * (positives + 1) / 2) / (positives * negatives)
    return found


def area_under_risk_coverage(wrong: Array, score: Array) -> float:
    """Return the error rate of the k predictions with the lowest score, averaged over k (Geifman et al. 2019).

    Lower is better. A score without information has the error rate of all predictions.

    Args:
        wrong: (tokens,), 0 or 1.
        score: (tokens,).
    """
    # Each token counts with the error rate of all tokens of its score: the expectation over their random order.
    # Otherwise the area would depend on the order in which ties happen to be sorted.
    _, group = np.unique(score, return_inverse=True)
    expected = np.bincount(group, wrong) / np.bincount(group)
    risk = np.cumsum(expected[np.sort(group)]) / np.arange(1, len(wrong) + 1)
    return float(risk.mean())


def calibration_error(right: Array, confidence: Array) -> float:
    """Return the expected calibration error over equally wide bins (Guo et al. 2017), in [0, 1].

    Args:
        right: (tokens,), 0 or 1.
        confidence: (tokens,), in [0, 1].
    """
    # A confidence of exactly 1 would have a bin of its own.
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    # A bin's gap times its number of tokens is the sum of their differences, so that no bin is divided by its count.
    gaps = np.bincount(bins, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(right))


def fitted_confidence(features: Array, right: Array, sequences: Ints) -> Array:
    """Return each token's probability of being right by a logistic regression on other sequences, (tokens,).

    Args:
        features: (tokens, features).
        right: (tokens,), 0 or 1.
        sequences: (tokens,).
    """
    # Folds hold whole sequences: otherwise features that identify a sequence would predict its other tokens.
    # They are stratified, so that each has right and wrong predictions to learn from.
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedGroupKFold(FOLDS)
    fitted: Array = cross_val_predict(model, features, right, groups=sequences, cv=folds, method="predict_proba")
    return fitted[:, 1]


def log_losses(right: Array, confidence: Array) -> Array:
    """Return the log-loss of each confidence, nats, (tokens,)."""
    return -np.log(np.where(right > 0, confidence, 1 - confidence))


def bootstrapped_areas(
    wrong: Array, scores: Mapping[str, Array], sequences: Ints, generator: np.random.Generator
) -> dict[str, Array]:
    """Return the areas of each score, (1 + samples,): of all tokens first, then of bootstrap samples of sequences.

    All scores see the same samples, so that their areas can be compared sample by sample. Samples in which every
    prediction is right, or wrong, have no area and are left out.

    Args:
        wrong: (tokens,), 0 or 1.
        scores: (tokens,) each.
        sequences: (tokens,).
    """
    rows = np.stack(list(scores.values()))
    samples = [np.arange(len(wrong)), *resamples_of(sequences, generator, RESAMPLES)]
    usable = [sample for sample in samples if 0 < wrong[sample].sum() < len(sample)]
    areas = np.stack([areas_under_roc(wrong[sample], rows[:, sample]) for sample in usable])
    return dict(zip(scores, areas.T, strict=True))


def from_bootstrap(drawn: Array, null: float) -> tuple[Interval, float]:
    """Return the 95% interval of a statistic, and the two-sided p-value of its being `null`.

    The p-value is the level at which the percentile interval begins to leave `null` out (Davison and Hinkley 1997).
    Sign flips would not do: an area is no mean over sequences.

    Args:
        drawn: (1 + samples,), the statistic itself first.
    """
    samples = drawn[1:]
    low, high = np.percentile(samples, (2.5, 97.5))
    # Samples that equal `null` count in both tails, so twice the smaller one can exceed 1. The statistic itself counts
    # as one of the samples, so that the p-value is never 0.
    tail = min((samples <= null).sum(), (samples >= null).sum())
    p_value = min(1.0, 2 * (1 + tail) / (1 + len(samples)))
    return Interval(mean=float(drawn[0]), low=float(low), high=float(high)), float(p_value)
