"""Turn tables of labelled sentences, or of pairs of sentences, into rows of integers.

They are tokenized once a node, memory-mapped, and divided into disjoint splits.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raysweep.contracts import Examples, Facts
from raysweep.errors import DataError
from raysweep.job.names import EMBEDDED, GLUE, HUB
from raysweep.job.plan import content_key
from raysweep.job.spec import DataSpec
from raysweep.trial.data.cache import cache_folder, keep_arrays
from raysweep.trial.data.corpora import choose_splits, hub_errors, in_evaluation, looks_like_path
from raysweep.trial.data.tokenizers import text_tokenizer
from raysweep.trial.data.tokens import SPLITS


class Labelled(NamedTuple):
    """A sentence, or a pair of sentences, with its label."""

    label: str
    first: str
    second: str | None = None
    """The second sentence of a pair; None for a single sentence."""


Sentences = list[Labelled]
SUFFIXES = (".tsv", ".csv")
LABEL = "label"
"""Name of the column of labels."""
TEXTS = (
    ("sentence1", "sentence2"), ("question1", "question2"), ("question", "sentence"), ("premise", "hypothesis"),
    ("sentence",),
)  # fmt: skip
"""Names of the text columns in GLUE. A table is read by the first entry whose columns it has."""
WITHOUT_HEADER = {2: (1, 0), 4: (1, 3)}
"""Tables without a header, by their number of columns: which columns hold the label and the sentence. SST-2 has
(sentence, label), CoLA has (source, label, mark, sentence)."""
HEADER = 3
"""Numbers before the tokens in a row."""


def prepare_sentences(
    data: DataSpec, *, tokenizer: str | None, vocab_size: int | None
) -> tuple[dict[str, Examples], Facts, str, str, Any]:
    """Return (rows of each split, facts, fingerprint, hash of the text, tokenizer).

    A row holds the label, the number of tokens, the number of tokens before the second sentence of a pair, and the
    tokens. Classes are numbered in the order of their names. Sentences longer than `data.seq_len` tokens are cut, the
    longer sentence of a pair first.

    Raises:
        DataError: there is no such table or tokenizer, a split has no sentences, or the held-out split has a label
            that the training split has not.
    """
    splits = dict(zip(SPLITS, load_sentences(data), strict=True))
    classes = _classes(splits["train"], splits["evaluation"], data)
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
    rows = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SPLITS}
    return rows, facts, fingerprint, content_key(digests), built


def load_sentences(data: DataSpec) -> tuple[Sentences, Sentences]:
    """Return the training and the held-out sentences of a corpus.

    A corpus is a table, a folder of tables named after their splits, or a data set on the hub.

    Raises:
        DataError: it cannot be read, lacks a split that the job names, or holds pairs in one split only.
    """
    train, evaluation = _splits(data)
    if len({sentence.second is None for sentence in (*train, *evaluation)}) > 1:
        raise DataError(f"data.name = {data.name!r}: one split holds pairs of sentences, the other single ones.")
    return train, evaluation


def no_sentences(name: str) -> str:
    """Return the message that a corpus has no labelled sentences, and what to give instead."""
    return (
        f"data.name = {name!r} holds no labelled sentences. Give a .tsv or .csv file with the columns 'sentence' and "
        "'label', or 'sentence1', 'sentence2' and 'label', or a folder of them (train.tsv, dev.tsv), or a data set of "
        f"the hub ({', '.join(GLUE)}), or choose another model.task."
    )


def _splits(data: DataSpec) -> tuple[Sentences, Sentences]:
    """Return the splits of a corpus, from a table or folder on this machine, or from the hub."""
    path = Path(os.path.expanduser(data.name))
    # The names of text corpora are not looked up on the hub: they have no labels, and the error below says so.
    if not (path.exists() or looks_like_path(data.name) or path.suffix in SUFFIXES or data.name in (EMBEDDED, *HUB)):
        return _hub_splits(data)
    tables = {file.stem: file for suffix in SUFFIXES for file in sorted(path.glob(f"*{suffix}"))}
    if path.is_file() and path.suffix in SUFFIXES:
        return _split_by_hash(read_table(path))
    if not tables:
        raise DataError(no_sentences(data.name))
    train, evaluation = choose_splits(tables, data)
    if evaluation is None:
        return _split_by_hash(read_table(tables[train]))
    return read_table(tables[train]), read_table(tables[evaluation])


def _hub_splits(data: DataSpec) -> tuple[Sentences, Sentences]:
    """Return the splits of a data set on the hub; GLUE's tasks go by their own names."""
    import datasets

    path, configuration = ("nyu-mll/glue", data.name) if data.name in GLUE else (data.name, None)
    with hub_errors(data.name, GLUE, "a .tsv file or a folder of them"):
        loaded = datasets.load_dataset(path, configuration)
        train, evaluation = choose_splits(list(loaded), data)
        sentences = _of_rows(loaded[train], data.name)
        return _split_by_hash(sentences) if evaluation is None else (sentences, _of_rows(loaded[evaluation], data.name))


def _of_rows(rows: Any, name: str) -> Sentences:
    """Return the sentences of a split of the hub, where labels are numbers; their digits are taken as names."""
    texts = _text_columns(rows.column_names)
    if texts is None:
        raise DataError(f"data.name = {name!r}: {_wanted()} It has {', '.join(rows.column_names)}.")
    return [Labelled(str(row[LABEL]), *(row[column].strip() for column in texts)) for row in rows]


def _text_columns(columns: Collection[str]) -> tuple[str, ...] | None:
    """Return the names of the text columns; None if there are none, or no label."""
    return next((texts for texts in TEXTS if {LABEL, *texts} <= set(columns)), None)


def _wanted() -> str:
    """Return the sentence of a message that says which columns a table has."""
    return f"a table has the column {LABEL!r}, and for its text {', or '.join(' and '.join(texts) for texts in TEXTS)}."


def read_table(path: Path) -> Sentences:
    """Read a table with a header, or without one in the form of SST-2 or CoLA.

    A header names `label` and the columns of an entry of `TEXTS`, in any order; other columns are left out.

    Raises:
        DataError: it cannot be read as such a table; the message names the file and the row.
    """
    try:
        # The csv module asks for newline="", since it looks for line breaks inside quotes by itself.
        with path.open(encoding="utf-8", newline="") as stream:
            # A quotation mark in a .tsv is text: neither SST-2 nor CoLA quotes anything.
            tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
            lines = [row for row in csv.reader(stream, **(tabs if path.suffix == ".tsv" else {})) if any(row)]
    except UnicodeDecodeError as error:
        raise DataError(f"data file {str(path)!r} is not UTF-8 text (byte {error.start}). Convert it first.") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"data file {str(path)!r} cannot be read ({error}).") from None
    if not lines:
        raise DataError(f"data file {str(path)!r} is empty.")
    texts = _text_columns(lines[0])
    if texts is None and len(lines[0]) not in WITHOUT_HEADER:
        raise DataError(
            f"data file {str(path)!r}: its first line, of {len(lines[0])} columns, names no text and label. "
            f"Add a header: {_wanted()}"
        )
    # Positions of the label and of the text in each line.
    label, *columns = map(lines[0].index, (LABEL, *texts)) if texts else WITHOUT_HEADER[len(lines[0])]
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]) or not line[label] or not all(line[column].strip() for column in columns):
            raise DataError(f"data file {str(path)!r}, row {number}: no sentence with a label: {line!r}.")
    # The first line is left out where it is a header.
    return [Labelled(line[label], *(line[column].strip() for column in columns)) for line in lines[bool(texts) :]]


def _split_by_hash(sentences: Sentences) -> tuple[Sentences, Sentences]:
    """Return the training and the held-out sentences of a table without splits."""
    # By the hash of the first sentence alone: pairs that share it, such as one question with several answers, are then
    # in the same split, and so is a sentence that occurs with two labels.
    held_out = [sentence for sentence in sentences if in_evaluation(sentence.first.encode())]
    return [sentence for sentence in sentences if not in_evaluation(sentence.first.encode())], held_out


def _classes(train: Sentences, evaluation: Sentences, data: DataSpec) -> dict[str, int]:
    """Return the number of each label, in the order of their names.

    Raises:
        DataError: a split is empty, a held-out label does not occur in training, or all labels are equal.
    """
    for key, sentences in (("train", train), ("evaluate", evaluation)):
        if not sentences:
            raise DataError(f"data.name = {data.name!r}: the {key} split holds no sentences. Give a longer table.")
    classes = {label: number for number, label in enumerate(sorted({sentence.label for sentence in train}))}
    unknown = sorted({sentence.label for sentence in evaluation} - classes.keys())
    if unknown or len(classes) < 2:
        what = f"the label {unknown[0]!r} is held out, but" if unknown else "there is nothing to tell apart:"
        raise DataError(f"data.name = {data.name!r}: {what} the training labels are {', '.join(classes)}.")
    return classes


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
