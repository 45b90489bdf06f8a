"""How hard a masked token is to guess, by a model that has nothing to do with the network: counts of neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysweep.contracts import Array, Batch, Examples, Mask
from raysweep.science.statistics.resampling import Ints

TOKENS = 2_000_000
"""Of the training split that are counted, from its beginning."""
WEIGHTS = (0.4, 0.4)
"""Of the left and of the right neighbour's share; the rest is the word's own (Jelinek and Mercer 1980)."""
BINS = 5
"""Frequency bins within which classes of difficulty are told apart."""
CLASSES = ("easy", "medium", "hard")
EASY, HARD = 0, 2
"""Numbers of the outer classes."""


class NeighbourCounts:
    """p(word | left, right) from counts in the training split, interpolated.

    A neighbour that is masked, outside of the sequence, or was never counted says nothing: its weight goes to the
    word's own frequency, which has one added to each count.
    """

    def __init__(self, train: Examples, frequency: Array) -> None:
        rows = np.asarray(train[: max(1, TOKENS // train.shape[1])]).astype(np.int64)
        lefts, rights = rows[:, :-1].ravel(), rows[:, 1:].ravel()
        self.size = len(frequency)
        self.pairs, self.counts = np.unique(lefts * self.size + rights, return_counts=True)
        self.followed = np.bincount(lefts, minlength=self.size)
        self.preceded = np.bincount(rights, minlength=self.size)
        self.own = (frequency + 1) / (frequency + 1).sum()

    def losses(self, words: Ints, lefts: Ints, rights: Ints) -> Array:
        """Return -log p of each word, nats; a neighbour of -1 is none."""
        probability, rest = np.zeros(len(words)), np.ones(len(words))
        sides = (
            (WEIGHTS[0], lefts, self.followed, self._together(lefts, words)),
            (WEIGHTS[1], rights, self.preceded, self._together(words, rights)),
        )
        for weight, neighbours, total, together in sides:
            known = (neighbours >= 0) & (total[neighbours] > 0)
            probability[known] += weight * together[known] / total[neighbours[known]]
            rest[known] -= weight
        return -np.log(probability + rest * self.own[words])

    def _together(self, lefts: Ints, rights: Ints) -> Ints:
        """Return how often each pair stands in the text."""
        wanted = lefts * self.size + rights
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.where(self.pairs[at] == wanted, self.counts[at], 0)


def difficulty(batches: Sequence[Batch], train: Examples, frequency: Array, mask_token: int) -> Array:
    """Return -log p of each labelled token, nats, (tokens,), given the neighbours that the network sees."""
    words, lefts, rights = [], [], []
    for batch in batches:
        assert batch.labelled is not None
        padded = np.pad(batch.inputs.cpu().numpy(), ((0, 0), (1, 1)), constant_values=-1)
        padded[padded == mask_token] = -1
        if batch.attention_mask is not None:
            padded[:, 1:-1][batch.attention_mask.cpu().numpy() == 0] = -1
        rows, columns = np.divmod(batch.labelled.cpu().numpy(), batch.labels.shape[1])
        words.append(batch.labels.cpu().numpy()[rows, columns])
        lefts.append(padded[rows, columns])
        rights.append(padded[rows, columns + 2])
    return NeighbourCounts(train, frequency).losses(*map(np.concatenate, (words, lefts, rights)))


def frequency_bins(frequency: Array) -> Ints:
    """Return the bin of each token, (tokens,), by its frequency in the corpus; equally many tokens in each, nearly.

    Tokens of one frequency are of one bin.
    """
    edges = np.quantile(frequency, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, frequency, side="left")


def matched_classes(losses: Array, frequency: Array) -> Ints:
    """Return the class of each token, 0 easy to 2 hard: thirds by difficulty within each bin of frequency, (tokens,).

    So every class holds equally frequent words, and what differs is how well their neighbours tell them.
    """
    classes = np.empty(len(losses), np.int64)
    bins = frequency_bins(frequency)
    for number in np.unique(bins):
        members = np.flatnonzero(bins == number)
        ranks = np.argsort(np.argsort(losses[members], kind="stable"), kind="stable")
        classes[members] = ranks * len(CLASSES) // len(members)
    return classes


def members_of(classes: Ints) -> dict[str, Mask]:
    """Return the members (tokens,) of each class by its name; a class without tokens is left out."""
    found = {name: classes == number for number, name in enumerate(CLASSES)}
    return {name: members for name, members in found.items() if members.any()}
