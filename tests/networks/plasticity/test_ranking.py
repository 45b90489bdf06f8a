"""Ranks, norms per layer and rank agreement against small cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raysweep.networks.plasticity.ranking import agreement, average_ranks, layer_normalised


def test_equal_scores_share_the_mean_of_their_ranks() -> None:
    assert average_ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [3.0, 0.0, 3.0, 1.0, 3.0]
    assert average_ranks(np.array([5.0, 5.0])).tolist() == [0.5, 0.5]
    assert average_ranks(np.array([1e-3, 1e-3 * (1 + 1e-13), 2.0])).tolist() == [0.5, 0.5, 2.0]


def test_each_layer_is_divided_by_the_norm_of_its_present_heads() -> None:
    scores = np.array([[3.0, 4.0, 100.0], [0.0, 0.0, 0.0], [-6.0, 8.0, 0.0]])
    present = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=bool)
    found = layer_normalised(scores, present)
    np.testing.assert_allclose(found[present], [0.6, 0.8, 0, 0, 0, -0.6, 0.8, 0.0])


def test_agreement_is_spearmans_correlation() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)) for ranks without ties: d^2 sums to 8 of 6 heads, 1 - 48 / 210."""
    first = np.array([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    second = np.array([[0.3, 0.1, 0.2], [0.5, 0.4, 0.6]])
    found = agreement(first, second, np.ones((2, 3), dtype=bool))
    assert found["global"] == pytest.approx(1 - 48 / 210)
    assert found["layer_centred"] == pytest.approx((-1 + 1) / 4)  # layer 0: -.5 of 2, layer 1: .5 of 2


def test_a_difference_between_layers_is_no_agreement_within_them() -> None:
    first = np.array([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    second = np.array([[3.0, 2.0, 1.0], [13.0, 12.0, 11.0]])
    found = agreement(first, second, np.ones((2, 3), dtype=bool))
    assert found["global"] is not None and found["global"] > 0.5
    assert found["layer_centred"] == pytest.approx(-1.0)


def test_absent_heads_do_not_count_and_constants_agree_with_nothing() -> None:
    present = np.array([[1, 1, 0], [1, 1, 0]], dtype=bool)
    first = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 9.0]])
    assert agreement(first, first, present)["global"] == pytest.approx(1.0)
    assert agreement(first, -first, present)["global"] == pytest.approx(-1.0)
    assert agreement(np.ones((2, 3)), first, present) == {"global": None, "layer_centred": None}
    assert agreement(first, first, np.zeros_like(present)) == {"global": None, "layer_centred": None}
