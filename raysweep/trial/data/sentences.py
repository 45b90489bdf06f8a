"""Turn tables of labelled sentences, or of pairs of sentences, into rows of integers.

They are tokenized once a node, memory-mapped, and divided into disjoint splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raysweep.contracts import Examples, Facts
from raysweep.errors import DataError
from raysweep.job.plan import content_key
from raysweep.job.spec import DataSpec
from raysweep.trial.data.cache import cache_folder, keep_arrays
from raysweep.trial.data.labelled import Sentences, classes_of, load_sentences
from raysweep.trial.data.splits import SAMPLE, Corpus
from raysweep.trial.data.tokenizers import text_tokenizer

HEADER = 3
"""Numbers before the tokens in a row."""


@dataclass(frozen=True, kw_only=True)
class SentenceStore:
    """The labelled sentences of one corpus under one tokenizer, on disk."""

    rows: dict[str, Examples]
    """The rows of each split. A row holds the label, the number of tokens, the number of tokens before the second
    sentence of a pair, and the tokens."""
    facts: Facts
    fingerprint: str
    """Hash of the text, the tokenizer, and how they are encoded."""
    text_sha256: str
    """Hash of the text alone."""
    classes: tuple[str, ...]
    """The names of the classes, in the order of their numbers."""
    samples: Corpus[str]
    """The beginning of each split."""
    tokenizer: Any


def prepare_sentences(data: DataSpec, *, tokenizer: str | None, vocab_size: int | None) -> SentenceStore:
    """Return labelled sentences as rows, from the cache or tokenized now.

    Classes are numbered in the order of their names. Sentences longer than `data.seq_len` tokens are cut, the longer
    sentence of a pair first.

    Raises:
        DataError: there is no such table or tokenizer, a split has no sentences, or the held-out split has a label
            that the training split has not.
    """
    corpus = load_sentences(data)
    classes = classes_of(corpus, data)
    splits = {name: split.content for name, split in corpus.named().items()}
    digests = {name: hashlib.sha256(repr(sentences).encode()).hexdigest() for name, sentences in splits.items()}
    # Trained on the training sentences alone: a vocabulary that had seen held-out sentences would leak their words.
    train = "\n".join(text for _, *texts in splits["train"] for text in texts if text is not None)
    built, identity, facts = text_tokenizer(train, tokenizer, vocab_size, special_tokens=True)
    facts = replace(facts, num_classes=len(classes), pairs=splits["train"][0].second is not None)
    if facts.pad_token is None:
        raise DataError(f"the tokenizer {tokenizer!r} has no padding token. Name another one with data.tokenizer.")
    pad = facts.pad_token
    fingerprint = content_key({"sentences": digests, "tokenizer": identity, "seq_len": data.seq_len, "pad": pad})
    folder = cache_folder() / "sentences" / fingerprint
    keep_arrays(
        folder,
        lambda: {name: _rows(found, classes, built, data.seq_len, pad) for name, found in splits.items()},
        built,
    )
    return SentenceStore(
        rows={name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in splits},
        facts=facts,
        fingerprint=fingerprint,
        text_sha256=content_key(digests),
        classes=tuple(classes),
        samples=corpus.with_contents(_sample),
        tokenizer=built,
    )


def _sample(sentences: Sentences) -> str:
    """Return the beginning of a split, its sentences on lines of their own."""
    # Every sentence has a character and a line break, so that more of them cannot be needed.
    texts = (text for _, *texts in sentences[:SAMPLE] for text in texts if text is not None)
    return "\n".join(texts)[:SAMPLE]


def _rows(sentences: Sentences, classes: dict[str, int], tokenizer: Any, width: int, pad: int) -> Examples:
    """Return the rows of a split, padded to `width` tokens; see `prepare_sentences`."""
    texts = [sentence.first if sentence.second is None else sentence[1:] for sentence in sentences]
    # Truncation is switched on for this call only: the cache stores the tokenizer, and exports use it, without it.
    tokenizer.enable_truncation(width)
    encodings = tokenizer.encode_batch(texts, add_special_tokens=True)
    tokenizer.no_truncation()
    rows = np.full((len(sentences), HEADER + width), pad, np.uint32)
    for row, sentence, encoding in zip(rows, sentences, encodings, strict=True):
        row[:HEADER] = classes[sentence.label], len(encoding.ids), _first_tokens(encoding.sequence_ids)
        row[HEADER : HEADER + len(encoding.ids)] = encoding.ids
    return rows


def _first_tokens(sequences: Sequence[int | None]) -> int:
    """Return the number of tokens before the second sentence, the separator after the first included.

    Args:
        sequences: for each token the number of its sentence, 0 or 1; None for special tokens.
    """
    # BERT counts the separator after the first sentence to the first segment.
    return sequences.index(1) if 1 in sequences else len(sequences)
