"""The statistical tests find planted effects, and find none under the null as often as their level says."""

from __future__ import annotations

import numpy as np
import pytest

from raysweep.errors import DataError
from raysweep.science.statistics import resampling
from raysweep.science.statistics.finding import Comparison, adjusted
from raysweep.science.statistics.resampling import (
    contrast,
    interval,
    intervals,
    paired,
    resamples_of,
    share_as_extreme,
)

SEQUENCES = np.repeat(np.arange(30), np.tile([3, 7], 15))


def drawn(seed: int, effect: float = 0.0) -> np.ndarray:
    """Tokens of one sequence share half of their variance."""
    generator = np.random.default_rng(seed)
    return effect + generator.normal(size=30)[SEQUENCES] + generator.normal(size=len(SEQUENCES))


def test_a_planted_difference_is_found_and_its_interval_holds_it() -> None:
    found = paired("planted", drawn(0, 1.0), SEQUENCES, np.random.default_rng(1))
    assert found.p_value < 0.01 and found.low < 1.0 < found.high and found.count == 30
    assert found.effect == pytest.approx(drawn(0, 1.0).mean())


def test_null_differences_are_found_about_as_often_as_alpha_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 300)
    generator = np.random.default_rng(2)
    found = [paired("null", drawn(seed), SEQUENCES, generator) for seed in range(300)]
    assert 0.02 < np.mean([comparison.p_value <= 0.05 for comparison in found]) < 0.09
    # The interval of 30 sequences is a little narrow, not as narrow as that of 150 independent tokens: 0.73.
    assert 0.88 < np.mean([comparison.low <= 0 <= comparison.high for comparison in found]) < 0.98


def test_the_mean_is_over_tokens_not_over_sequences() -> None:
    values, sequences = np.array([0.0, 0.0, 0.0, 1.0]), np.array([4, 4, 4, 9])
    assert interval(values, sequences, np.random.default_rng(0)).mean == 0.25
    both = intervals(np.stack([values, 2 * values], 1), sequences, np.random.default_rng(0))
    assert [column.mean for column in both] == [0.25, 0.5]
    assert [column.high for column in both] == [1.0, 2.0]


def test_samples_are_of_whole_sequences() -> None:
    for sample in resamples_of(SEQUENCES, np.random.default_rng(3), 5):
        drawn, counts = np.unique(SEQUENCES[sample], return_counts=True)
        assert (counts % np.bincount(SEQUENCES)[drawn] == 0).all() and counts.sum() == len(sample)


def test_a_p_value_is_never_zero_and_counts_ties() -> None:
    assert share_as_extreme(5.0, np.zeros(99)) == 0.01
    assert share_as_extreme(0.3, np.full(9, 0.1 + 0.2)) == 1.0


def test_q_values_are_those_of_benjamini_and_hochberg() -> None:
    p_values = [0.01, 0.04, 0.03, 0.5]
    made = [Comparison(name=str(p), effect=0, low=0, high=0, p_value=p, count=9) for p in p_values]
    assert [comparison.q_value for comparison in adjusted(made)] == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert [comparison.found for comparison in adjusted(made)] == [True, False, False, False]
    assert adjusted([]) == []


def test_groups_that_differ_are_told_apart_and_those_that_do_not_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 300)
    generator = np.random.default_rng(6)
    groups = generator.integers(3, size=len(SEQUENCES))
    ones, others = groups == 0, groups == 1
    planted = contrast("planted", drawn(0) + 1.0 * ones, ones, others, SEQUENCES, generator)
    values = drawn(0) + ones
    assert planted.effect == pytest.approx(values[ones].mean() - values[others].mean())
    assert planted.p_value < 0.01 and planted.low < 1.0 < planted.high
    null = [contrast("null", drawn(seed), ones, others, SEQUENCES, generator).p_value for seed in range(300)]
    assert 0.02 < np.mean(np.array(null) <= 0.05) < 0.09


def test_what_sequences_share_is_no_evidence_about_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that are whole sequences: as if there were 30 tokens, not 150."""
    monkeypatch.setattr(resampling, "RESAMPLES", 300)
    generator = np.random.default_rng(7)
    ones = SEQUENCES < 15
    null = [contrast("null", 2 * drawn(seed), ones, ~ones, SEQUENCES, generator).p_value for seed in range(200)]
    assert np.mean(np.array(null) <= 0.05) < 0.11  # taken as independent tokens, about 0.35


def test_an_empty_group_is_an_error() -> None:
    none = np.zeros(len(SEQUENCES), bool)
    with pytest.raises(DataError, match="--eval-tokens"):
        contrast("hard", drawn(0), none, ~none, SEQUENCES, np.random.default_rng(0))
