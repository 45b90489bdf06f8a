"""Turn text into windows of tokens: tokenized once a node, memory-mapped, divided among ranks without overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysweep.contracts import Facts
from raysweep.errors import DataError
from raysweep.job.plan import content_key
from raysweep.job.spec import DataSpec
from raysweep.trial.data.cache import cache_folder, keep_arrays
from raysweep.trial.data.corpora import blocks_of, load_splits
from raysweep.trial.data.splits import SAMPLE, Corpus
from raysweep.trial.data.tokenizers import text_tokenizer

Tokens = npt.NDArray[Any]


PIECE_CHARACTERS, PIECES_AT_ONCE = 100_000, 16
"""A text is encoded in pieces of so many characters, so many of them at once: this bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """The tokens of one corpus under one tokenizer, on disk."""

    folder: Path
    train: Tokens
    evaluation: Tokens
    """The tokens of the split that a sweep chooses by."""
    test: Tokens | None
    """None where the corpus has no test split."""
    vocab_size: int
    fingerprint: str
    """Hash of all texts, the tokenizer, and how they are encoded; also the name of the cache entry."""
    text_sha256: str
    """Hash of all texts alone."""
    facts: Facts
    samples: Corpus[str]
    """The beginning of each split."""

    def tokenizer(self) -> Any:
        """Return the tokenizer (`encode(text).ids`, `decode(ids)`)."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))


def prepare(
    data: DataSpec, *, tokenizer: str | None, vocab_size: int | None, special_tokens: bool = False,
    learned_from: DataSpec | None = None,
) -> TokenStore:  # fmt: skip
    """Return a corpus as tokens, from the cache or tokenized now; every process of a node may call this at once.

    Args:
        tokenizer, vocab_size, special_tokens: see `text_tokenizer`.
        learned_from: the corpus on whose training split a tokenizer is trained, so that two corpora share one; by
            default `data` itself.

    Raises:
        DataError: no such corpus or tokenizer, too small a vocabulary, or text too short for one window in each split.
    """
    corpus = load_splits(data)
    texts = {name: split.content for name, split in corpus.named().items()}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    # Trained on the training split alone: a vocabulary that had seen the held-out text would leak its words.
    taught = texts["train"] if learned_from is None else load_splits(learned_from).train.content
    built, identity, facts = text_tokenizer(taught, tokenizer, vocab_size, special_tokens=special_tokens)
    # The size of pieces is part of it: a token never spans two pieces, so another size gives other tokens.
    fingerprint = content_key(
        {"text": digests, "tokenizer": identity, "max_tokens": data.max_tokens, "pieces": PIECE_CHARACTERS}
    )
    folder = cache_folder() / "tokens" / fingerprint
    tokens = _kept(folder, texts, built, data)
    return TokenStore(
        folder=folder,
        train=tokens["train"],
        evaluation=tokens["choose"],
        test=tokens.get("test"),
        vocab_size=built.get_vocab_size(),
        fingerprint=fingerprint,
        text_sha256=content_key(digests),
        facts=facts,
        samples=corpus.with_contents(lambda text: text[:SAMPLE]),
    )


def _kept(folder: Path, texts: Mapping[str, str], tokenizer: Any, data: DataSpec) -> dict[str, Tokens]:
    """Return the tokens of each split as its folder of the cache holds them, made now where it does not."""
    limits = {"train": data.max_tokens}
    keep_arrays(
        folder, lambda: {name: _encode(text, tokenizer)[: limits.get(name)] for name, text in texts.items()}, tokenizer
    )
    # Mapped, not read: all ranks of a node share one copy in the page cache, and none can write to it.
    tokens = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in texts}
    _check_length(tokens, data)
    return tokens


def _check_length(tokens: Mapping[str, Tokens], data: DataSpec) -> None:
    """Check that each split has enough tokens for one window.

    Raises:
        DataError: one has fewer.
    """
    for name, found in tokens.items():
        if len(found) < data.seq_len:
            raise DataError(
                f"data.name = {data.name!r}: its {name} split has {len(found)} tokens, fewer than one window of "
                f"data.seq_len = {data.seq_len}. Give a longer text or a smaller data.seq_len."
            )


def windows_of(tokens: Tokens, seq_len: int) -> Tokens:
    """Return a view of tokens as consecutive windows (count, seq_len); a tail shorter than a window is left out."""
    count = len(tokens) // seq_len
    return tokens[: count * seq_len].reshape(count, seq_len)


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """The order in which windows are trained on: a new permutation in every epoch, no window lost between epochs.

    It has no state: the windows of a step follow from the seed and the step alone. A run resumed at any step sees the
    windows of an uninterrupted one, and any number of ranks together sees the same batch.
    """

    num_windows: int
    batch_size: int
    seed: int

    def indices(self, step: int, rank: int = 0, world_size: int = 1) -> npt.NDArray[np.int64]:
        """Return the indices of this rank's windows of one step; those of all ranks are the whole batch."""
        positions = self._positions(step, rank, world_size)
        # A batch may reach over the end of an epoch: each position is looked up in the permutation of its own epoch.
        epochs, offsets = np.divmod(positions, self.num_windows)
        order = [_permutation(self.num_windows, self.seed, int(epoch)) for epoch in epochs]
        return np.array([permutation[at] for permutation, at in zip(order, offsets, strict=True)], np.int64)

    def seeds(self, step: int, rank: int = 0, world_size: int = 1) -> npt.NDArray[np.int64]:
        """Return the seeds of this rank's examples of one step, for what a task draws at random in each."""
        # By position and not by window: in the next epoch a task hides other tokens of the same window. The modulus
        # keeps the sum far from the end of int64.
        return (self.seed + self._positions(step, rank, world_size)) % 2**62

    def _positions(self, step: int, rank: int, world_size: int) -> npt.NDArray[np.int64]:
        """Return the positions of this rank's examples of one step in the endless sequence of all epochs."""
        # Ranks take turns within a batch, so their shares differ by one example at most.
        return np.arange(step * self.batch_size + rank, (step + 1) * self.batch_size, world_size)


# Two are kept: a batch may need the permutations of two epochs in turn.
@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of all windows in one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def shard(count: int, rank: int, world_size: int) -> npt.NDArray[np.int64]:
    """Return this rank's indices of `count` items: disjoint over ranks, together all of them."""
    return np.arange(rank, count, world_size)


def _encode(text: str, tokenizer: Any) -> Tokens:
    """Encode a text piece by piece and return its tokens."""
    # Half the disk and memory wherever every id fits into 16 bits.
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    # The encodings of a whole text would take hundreds of bytes a token; only the ids of each piece are kept.
    encoded = [np.empty(0, dtype)]
    pieces = blocks_of(text, PIECE_CHARACTERS)
    while batch := list(islice(pieces, PIECES_AT_ONCE)):
        encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
        encoded += [np.array(encoding.ids, dtype) for encoding in encodings]
    return np.concatenate(encoded)
