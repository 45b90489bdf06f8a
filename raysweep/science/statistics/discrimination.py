"""How well a score tells wrong predictions from right ones."""

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
BINS = 15
RESAMPLES = 1000


def areas_under_roc(wrong: Array, scores: Array) -> Array:
    """Return how likely a wrong prediction scores higher than a right one, ties counting half; 0.5 is chance.

    By ranks, as Mann and Whitney (1947) have it.

    Args:
        wrong: (tokens,), 0 or 1.
        scores: (scores, tokens).
    """
    positives, negatives = wrong.sum(), (1 - wrong).sum()
    ranks = rankdata(scores, axis=1)
    found: Array = (ranks @ wrong - positives * (positives + 1) / 2) / (positives * negatives)
    return found


def area_under_risk_coverage(wrong: Array, score: Array) -> float:
    """Return the error rate of the k predictions with the lowest score, averaged over k (Geifman et al. 2019).

    Lower is better; the error rate of all is what a score without information has. Among equal scores every order is
    equally likely.
    """
    _, group = np.unique(score, return_inverse=True)
    expected = np.bincount(group, wrong) / np.bincount(group)
    risk = np.cumsum(expected[np.sort(group)]) / np.arange(1, len(wrong) + 1)
    return float(risk.mean())


def calibration_error(right: Array, confidence: Array) -> float:
    """Return the expected calibration error over equally wide bins (Guo et al. 2017)."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(right))


def fitted_confidence(features: Array, right: Array, sequences: Ints) -> Array:
    """Return the probability of being right that a logistic regression gives, fitted on other sequences; (tokens,).

    Args:
        features: (tokens, features).
        right: (tokens,), 0 or 1.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedGroupKFold(FOLDS)
    fitted: Array = cross_val_predict(model, features, right, groups=sequences, cv=folds, method="predict_proba")
    return fitted[:, 1]


def log_losses(right: Array, confidence: Array) -> Array:
    """Return the negative log-likelihood of each prediction's being right or not, nats, (tokens,)."""
    return -np.log(np.where(right > 0, confidence, 1 - confidence))


def bootstrapped_areas(
    wrong: Array, scores: Mapping[str, Array], sequences: Ints, generator: np.random.Generator
) -> dict[str, Array]:
    """Return each score's area under the ROC curve: of all tokens first, then of bootstrap samples of whole sequences.

    All scores see the same samples. Those in which every prediction is right, or wrong, have no area and are left out.
    """
    rows = np.stack(list(scores.values()))
    samples = [np.arange(len(wrong)), *resamples_of(sequences, generator, RESAMPLES)]
    usable = [sample for sample in samples if 0 < wrong[sample].sum() < len(sample)]
    areas = np.stack([areas_under_roc(wrong[sample], rows[:, sample]) for sample in usable])
    return dict(zip(scores, areas.T, strict=True))


def from_bootstrap(drawn: Array, null: float) -> tuple[Interval, float]:
    """Return the interval of a statistic, and the two-sided p-value of its being `null` (Davison and Hinkley 1997).

    Args:
        drawn: (1 + samples,), the statistic itself first.
    """
    samples = drawn[1:]
    low, high = np.percentile(samples, (2.5, 97.5))
    tail = min((samples <= null).sum(), (samples >= null).sum())
    p_value = min(1.0, 2 * (1 + tail) / (1 + len(samples)))
    return Interval(mean=float(drawn[0]), low=float(low), high=float(high)), float(p_value)
