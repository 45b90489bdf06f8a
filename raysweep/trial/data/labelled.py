"""Load labelled sentences, or pairs of sentences, as splits: from tables, folders of them, and the hub."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from raysweep.errors import DataError
from raysweep.job.names import EMBEDDED, GLUE, HUB
from raysweep.job.spec import DataSpec
from raysweep.trial.data import hub
from raysweep.trial.data.corpora import corpus_here
from raysweep.trial.data.files import TABLES, check_readable, ending
from raysweep.trial.data.local import Reader
from raysweep.trial.data.splits import Corpus, split_corpus
from raysweep.trial.data.tables import Row, read_table


class Labelled(NamedTuple):
    """A sentence, or a pair of sentences, with its label."""

    label: str
    first: str
    second: str | None = None
    """The second sentence of a pair; None for a single sentence."""


Sentences = list[Labelled]


def load_sentences(data: DataSpec) -> Corpus[Sentences]:
    """Return the labelled sentences of a corpus by split.

    A corpus is a table, a folder of tables named after their splits, or a data set on the hub.

    Raises:
        DataError: it cannot be read, lacks a split that the job names, or holds pairs in one split only.
    """
    corpus = _corpus(data)
    # Where the labels of a test split are a contest's secret, all are -1: such a split measures nothing.
    if data.test is None and corpus.test is not None and {row.label for row in corpus.test.content} == {"-1"}:
        corpus = replace(corpus, test=None, left_out=(*corpus.left_out, corpus.test.origin))
    if len({row.second is None for split in corpus.named().values() for row in split.content}) > 1:
        raise DataError(f"data.name = {data.name!r}: one split holds pairs of sentences, the other single ones.")
    return corpus


def no_sentences(name: str) -> str:
    """Return the message that a corpus has no labelled sentences, and what to give instead."""
    return (
        f"data.name = {name!r} holds no labelled sentences. Give a table ({', '.join(TABLES)}) with the columns "
        "'sentence' and 'label', or 'sentence1', 'sentence2' and 'label', or a folder of them (train.tsv, dev.tsv), or "
        f"a data set of the hub ({', '.join(GLUE)}), or choose another model.task."
    )


def _corpus(data: DataSpec) -> Corpus[Sentences]:
    """Return the splits of a corpus, from a table or folder on this machine, or from the hub."""
    path = os.path.expanduser(data.name)
    # The names of text corpora are not looked up on the hub: they have no labels, and the error below says so.
    if data.name in (EMBEDDED, *HUB) or (os.path.isfile(path) and ending(Path(path)) not in TABLES):
        raise DataError(no_sentences(data.name))
    reader = Reader(
        kinds=(TABLES,), read=lambda file: read_sentences(file, data), mark=_mark,
        wanted=f"no table of labelled sentences: no file that ends with {', '.join(TABLES)}",
    )  # fmt: skip
    if (here := corpus_here(data, reader)) is not None:
        return here
    chosen, found = hub.labelled_splits(data)
    named = f"data.name = {data.name!r}"
    sentences = {name: split.holding([_labelled(row, named) for row in split.content]) for name, split in found.items()}
    return split_corpus(chosen, sentences, _mark)


def _mark(sentence: Labelled) -> bytes:
    # By the first sentence alone: pairs that share it, such as one question with several answers, are then in the same
    # split, and so is a sentence that occurs with two labels.
    return sentence.first.encode()


def read_sentences(path: Path, data: DataSpec) -> Sentences:
    """Return the labelled sentences of a table.

    Raises:
        DataError: it cannot be read as such a table; the message names the file and the row.
    """
    check_readable(path)
    return [_labelled(row, f"data file {str(path)!r}") for row in read_table(path, data, labelled=True)]


def _labelled(row: Row, source: str) -> Labelled:
    """Return a row of a table as a labelled sentence, without spaces around.

    Raises:
        DataError: a cell is missing, empty, or holds something else.
    """
    texts = [text for text in (row.text, row.second) if text is not None]
    label = _label_name(row.label)
    whole = texts and all(isinstance(text, str) and text.strip() for text in texts)
    if not whole or not label:
        cells = [cell for cell in (row.text, row.second, row.label) if cell is not None]
        raise DataError(f"{source}, row {row.number}: no sentence with a label: {cells!r}.")
    return Labelled(label, *(text.strip() for text in texts))


def _label_name(label: Any) -> str:
    """Return the name of a class; "" where there is none."""
    # Formats with types have numbers and booleans as labels; their names are those that a .csv would have.
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip() if isinstance(label, str | int | float) and label == label else ""


def classes_of(corpus: Corpus[Sentences], data: DataSpec) -> dict[str, int]:
    """Return the number of each label, in the order of their names.

    Raises:
        DataError: a split is empty, a held-out label does not occur in training, or the labels are no classes.
    """
    for name, split in corpus.named().items():
        if not split.content:
            raise DataError(f"data.name = {data.name!r}: the {name} split holds no sentences. Give a longer table.")
    labels = [sentence.label for sentence in corpus.train.content]
    classes = {label: number for number, label in enumerate(sorted(set(labels)))}
    # Texts, identifiers or measurements; a class has several examples, or nothing could be learnt of it.
    if len(classes) > max(2, len(labels) // 2):
        raise DataError(
            f"data.name = {data.name!r}: {len(classes)} different labels for {len(labels)} sentences are no classes: "
            f"{_some(classes)}. Name the column of labels with data.columns.label."
        )
    for split in corpus.named().values():
        unknown = sorted({sentence.label for sentence in split.content} - classes.keys())
        if unknown:
            raise DataError(
                f"data.name = {data.name!r}: the label {unknown[0]!r} of {split.origin} is none of the training "
                f"labels: {_some(classes)}."
            )
    if len(classes) < 2:
        raise DataError(
            f"data.name = {data.name!r}: there is nothing to tell apart: the training labels are {_some(classes)}."
        )
    return classes


def _some(classes: Collection[str]) -> str:
    return ", ".join(list(classes)[:10]) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
