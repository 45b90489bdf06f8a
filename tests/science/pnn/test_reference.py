"""Difficulty by counts of neighbours, against counts by hand; its classes hold equally frequent words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.subjects import tiny_subject

from raysweep.contracts import Batch
from raysweep.science.pnn.reference import difficulty, frequency_bins, matched_classes
from raysweep.science.pnn.subject import frequency_of

TRAIN = np.array([[1, 2, 3, 1], [1, 2, 4, 2]])
OWN = (np.array([0, 3, 3, 1, 1, 0]) + 1) / 14


def loss_of(inputs: list[int], at: int, word: int, attention: list[int] | None = None) -> float:
    labels = torch.full((1, len(inputs)), -100)
    labels[0, at] = word
    batch = Batch(
        inputs=torch.tensor([inputs]), labels=labels, labelled=torch.tensor([at]),
        attention_mask=None if attention is None else torch.tensor([attention]),
    )  # fmt: skip
    return float(difficulty([batch], TRAIN, frequency_of(TRAIN, 6), mask_token=5)[0])


def test_difficulty_interpolates_what_both_neighbours_and_the_word_say() -> None:
    # 1 is followed by 2 both times; 3 stands after 2 once, and 2 is followed by 3 or 4; before 3 stands 2.
    assert loss_of([1, 5, 3], 1, 2) == pytest.approx(-np.log(0.4 * 1 + 0.4 * 1 + 0.2 * OWN[2]))
    assert loss_of([2, 5, 1], 1, 3) == pytest.approx(-np.log(0.4 * 1 / 2 + 0.4 * 1 + 0.2 * OWN[3]))


def test_what_cannot_be_seen_says_nothing() -> None:
    assert loss_of([5, 5, 3], 1, 2) == pytest.approx(-np.log(0.4 * 1 + 0.6 * OWN[2]))  # a masked neighbour
    assert loss_of([5, 3], 0, 2) == pytest.approx(-np.log(0.4 * 1 + 0.6 * OWN[2]))  # the edge
    assert loss_of([1, 5, 3], 1, 2, [1, 1, 0]) == pytest.approx(-np.log(0.4 * 1 + 0.6 * OWN[2]))  # padding
    assert loss_of([5, 5, 5], 1, 0) == pytest.approx(-np.log(OWN[0]))


def test_classes_hold_equally_frequent_words_of_different_difficulty() -> None:
    generator = np.random.default_rng(0)
    frequency = generator.permutation(1000).astype(float)
    losses = -np.log(frequency + 1) + generator.normal(size=1000)  # rare words are harder
    classes = matched_classes(losses, frequency)
    assert np.bincount(classes).min() > 300
    medians = [np.median(frequency[classes == number]) for number in range(3)]
    assert max(medians) - min(medians) < 60
    hardness = [losses[classes == number].mean() for number in range(3)]
    assert hardness[0] < hardness[1] - 0.5 < hardness[2] - 1.0


def test_words_of_one_frequency_are_of_one_bin() -> None:
    bins = frequency_bins(np.array([5.0, 5.0, 5.0, 5.0, 1.0, 9.0]))
    assert len(set(bins[:4])) == 1 and bins[4] <= bins[0] < bins[5]


def test_a_subject_knows_the_difficulty_of_every_masked_token() -> None:
    subject = tiny_subject()
    assert subject.difficulty().shape == subject.predictions().labels.shape
