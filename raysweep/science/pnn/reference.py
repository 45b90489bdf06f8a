"""Measure how hard a masked token is to guess by counts of its neighbours, independently of the network.

The published classes of difficulty come from the network's own predictions, whose steps are then counted. Classes by
another model cannot be circular in this way (docs/pnn.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysweep.contracts import Array, Batch, Examples, Mask
from raysweep.science.statistics.resampling import Ints

TOKENS = 2_000_000
"""Tokens of the training split that are counted, from its beginning."""
WEIGHTS = (0.4, 0.4)
"""Interpolation weights of the left and of the right neighbour; the rest is the word's own frequency (Jelinek and
Mercer 1980)."""
BINS = 5
"""Frequency bins within which tokens are divided into classes of difficulty."""
CLASSES = ("easy", "medium", "hard")
EASY, HARD = 0, 2
"""Numbers of the outer classes."""


class NeighbourCounts:
    """The probability of a word given its left and right neighbour, interpolated from counts of the training split.

    The weight of a neighbour that is masked, outside of the sequence, or was never counted goes to the word's own
    frequency. That has one added to each count, so that no probability is 0.
    """

    def __init__(self, train: Examples, frequency: Array) -> None:
        rows = np.asarray(train[: max(1, TOKENS // train.shape[1])]).astype(np.int64)
        # Pairs stand within rows alone: the end of one row and the beginning of the next are not neighbours.
        lefts, rights = rows[:, :-1].ravel(), rows[:, 1:].ravel()
        self.size = len(frequency)
        # A table of all pairs would have vocabulary^2 entries. Each pair is one number, and those that occur are kept.
        self.pairs, self.counts = np.unique(lefts * self.size + rights, return_counts=True)
        self.followed = np.bincount(lefts, minlength=self.size)
        self.preceded = np.bincount(rights, minlength=self.size)
        self.own = (frequency + 1) / (frequency + 1).sum()

    def losses(self, words: Ints, lefts: Ints, rights: Ints) -> Array:
        """Return -log p of each word, nats, (words,).

        Args:
            words: (words,).
            lefts, rights: (words,), the neighbours; -1 where there is none.
        """
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
        """Return how often each pair occurs in the training split, (pairs,)."""
        # `pairs` is sorted, as np.unique returns it. A pair beyond the last one would have the index after its end.
        wanted = lefts * self.size + rights
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.where(self.pairs[at] == wanted, self.counts[at], 0)


def difficulty(batches: Sequence[Batch], train: Examples, frequency: Array, mask_token: int) -> Array:
    """Return -log p of each labelled token given the neighbours that the network sees, nats, (tokens,).

    Args:
        train: (sequences, tokens), the rows that neighbours are counted in.
        frequency: (vocabulary,), how often each token occurs there.
    """
    words, lefts, rights = [], [], []
    for batch in batches:
        assert batch.labelled is not None
        # One column of -1 at either end: tokens at the ends have a neighbour on one side alone.
        padded = np.pad(batch.inputs.cpu().numpy(), ((0, 0), (1, 1)), constant_values=-1)
        padded[padded == mask_token] = -1
        if batch.attention_mask is not None:
            padded[:, 1:-1][batch.attention_mask.cpu().numpy() == 0] = -1
        rows, columns = np.divmod(batch.labelled.cpu().numpy(), batch.labels.shape[1])
        words.append(batch.labels.cpu().numpy()[rows, columns])
        # Columns are shifted by the one in front, so the left neighbour has the token's own column.
        lefts.append(padded[rows, columns])
        rights.append(padded[rows, columns + 2])
    return NeighbourCounts(train, frequency).losses(*map(np.concatenate, (words, lefts, rights)))


def frequency_bins(frequency: Array) -> Ints:
    """Return the frequency bin of each token, (tokens,); bins hold about equally many tokens.

    Tokens of equal frequency share a bin, so bins are of unequal size where one word is very frequent.

    Args:
        frequency: (tokens,), how often the word of each token occurs in the corpus.
    """
    edges = np.quantile(frequency, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, frequency, side="left")


def matched_classes(losses: Array, frequency: Array) -> Ints:
    """Return the class of each token, 0 (easy) to 2 (hard): thirds by difficulty within each frequency bin, (tokens,).

    Frequent words are easier for any model. Within bins every class holds equally frequent words, and what differs is
    how well their neighbours determine them.

    Args:
        losses: (tokens,), the difficulty.
        frequency: (tokens,), of the word of each token.
    """
    classes = np.empty(len(losses), np.int64)
    bins = frequency_bins(frequency)
    for number in np.unique(bins):
        members = np.flatnonzero(bins == number)
        # argsort of argsort is the rank; sorting stably, equal losses are divided in the order of the tokens.
        ranks = np.argsort(np.argsort(losses[members], kind="stable"), kind="stable")
        classes[members] = ranks * len(CLASSES) // len(members)
    return classes


def members_of(classes: Ints) -> dict[str, Mask]:
    """Return the members (tokens,) of each class by its name; a class without tokens is left out."""
    found = {name: classes == number for number, name in enumerate(CLASSES)}
    return {name: members for name, members in found.items() if members.any()}
