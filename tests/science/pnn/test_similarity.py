"""Similarity of states, and the dimensions that they fill, against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.subjects import LENGTH, tiny_subject

from raysweep.science.pnn.activity import states_by_sequence
from raysweep.science.statistics.similarity import alignments, breadths, orders, update_cosines

STATES = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Song et al. (2012), equation 5, term by term."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ l) + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3)))


def test_alignment_is_unbiased_linear_cka() -> None:
    grams = [(state @ state.T).numpy() for state in STATES]
    expected = [[hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)) for b in grams] for a in grams]
    np.testing.assert_allclose(alignments(STATES), expected, atol=1e-12)


def test_alignment_is_blind_to_rotation_scale_and_offset_and_near_zero_for_unrelated_states() -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    same = torch.stack([STATES[0], 3 * STATES[0] @ rotation + 2])
    assert alignments(same)[0, 1] == pytest.approx(1.0)
    drawn = torch.randn(200, 2, 20, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert abs(np.mean([alignments(pair)[0, 1] for pair in drawn])) < 0.02  # biased, it would be 0.7


def test_breadth_is_the_participation_ratio_of_the_covariance_of_scaled_states() -> None:
    for found, state in zip(breadths(STATES), STATES.numpy(), strict=True):
        scaled = state / np.sqrt((state**2).mean(1, keepdims=True))
        values = np.linalg.eigvalsh(np.cov(scaled.T))
        assert found == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert breadths(STATES * 7) == pytest.approx(breadths(STATES))


def test_cosines_of_updates_are_means_over_tokens() -> None:
    updates = np.diff(STATES.numpy(), axis=0)
    unit = updates / np.linalg.norm(updates, axis=-1, keepdims=True)
    expected = [[(a * b).sum(-1).mean() for b in unit] for a in unit]
    np.testing.assert_allclose(update_cosines(STATES), expected)


def test_states_are_those_of_each_sequence_in_turn() -> None:
    subject = tiny_subject(sequences=19)
    found = states_by_sequence(subject.network, subject.batches)
    assert len(found) == 19 and {tuple(states.shape) for states in found} == {(4, LENGTH, 15)}
    last = subject.network.pnn.states(subject.batches[1].inputs)
    torch.testing.assert_close(found[17], torch.stack([state[1] for state in last]).detach())


def test_orders_are_permutations_of_their_own_for_each_sequence() -> None:
    drawn = orders(5, 4, 100, np.random.default_rng(0))
    assert drawn.shape == (100, 5, 4) and (np.sort(drawn, -1) == np.arange(4)).all()
    assert (drawn[:, 0] != drawn[:, 1]).any() and len(np.unique(drawn.reshape(-1, 4), axis=0)) == 24
