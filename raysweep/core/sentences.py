"""From tables of labelled sentences to rows of integers: tokenized once a node, memory-mapped, as disjoint splits."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.contracts import Examples, Facts
from raysweep.core.corpora import choose_splits, in_evaluation
from raysweep.core.data import SPLITS, cache_folder, keep_arrays, text_tokenizer
from raysweep.errors import DataError
from raysweep.plan import content_key
from raysweep.spec import DataSpec

Sentences = list[tuple[str, str]]
"""(label, sentence)"""
SUFFIXES = (".tsv", ".csv")
COLUMNS = ("label", "sentence")
WITHOUT_HEADER = {2: (1, 0), 4: (1, 3)}
"""Number of columns -> those of label and sentence: (sentence, label) as SST-2, (source, label, mark, sentence) as
CoLA."""


def prepare_sentences(
    data: DataSpec, *, tokenizer: str | None, vocab_size: int | None
) -> tuple[dict[str, Examples], Facts, str, str, Any]:
    """Return (rows of each split, facts, fingerprint, hash of the text, tokenizer).

    A row is label, number of tokens, tokens.

    Classes are numbered in the order of their names. What is longer than `data.seq_len` tokens is cut.

    Raises:
        DataError: no such table or tokenizer, or a split without sentences or with a class of its own.
    """
    splits = dict(zip(SPLITS, load_sentences(data), strict=True))
    classes = _classes(splits["train"], splits["evaluation"], data)
    digests = {name: hashlib.sha256(repr(sentences).encode()).hexdigest() for name, sentences in splits.items()}
    train = "\n".join(sentence for _, sentence in splits["train"])
    built, identity, facts = text_tokenizer(train, tokenizer, vocab_size, special_tokens=True)
    facts = replace(facts, num_classes=len(classes))
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
    """Return the training and the held-out sentences of a table, or of a folder of tables named after their splits.

    Raises:
        DataError: they cannot be read, or lack a split that the job names.
    """
    path = Path(os.path.expanduser(data.name))
    tables = {file.stem: file for suffix in SUFFIXES for file in sorted(path.glob(f"*{suffix}"))}
    if path.is_file() and path.suffix in SUFFIXES:
        return _split_by_hash(read_table(path))
    if not tables:
        raise DataError(
            f"data.name = {data.name!r} holds no labelled sentences. Give a .tsv or .csv file with the columns "
            "'sentence' and 'label', or a folder of them (train.tsv, dev.tsv), or choose another model.task."
        )
    train, evaluation = choose_splits(tables, data)
    if evaluation is None:
        return _split_by_hash(read_table(tables[train]))
    return read_table(tables[train]), read_table(tables[evaluation])


def read_table(path: Path) -> Sentences:
    """Read a table, with the header `sentence`, `label` (among others, in any order) or without as SST-2 and CoLA.

    Raises:
        DataError: naming the file and the line.
    """
    try:
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
    has_header = set(COLUMNS) <= set(lines[0])
    if not has_header and len(lines[0]) not in WITHOUT_HEADER:
        raise DataError(
            f"data file {str(path)!r}: the first of its {len(lines[0])} columns' line names no 'sentence' and 'label'. "
            "Add such a header."
        )
    label, sentence = map(lines[0].index, COLUMNS) if has_header else WITHOUT_HEADER[len(lines[0])]
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]) or not line[label] or not line[sentence].strip():
            raise DataError(f"data file {str(path)!r}, row {number}: no sentence with a label stands there: {line!r}.")
    return [(line[label], line[sentence].strip()) for line in lines[has_header:]]


def _split_by_hash(sentences: Sentences) -> tuple[Sentences, Sentences]:
    held_out = [entry for entry in sentences if in_evaluation(entry[1].encode())]
    return [entry for entry in sentences if not in_evaluation(entry[1].encode())], held_out


def _classes(train: Sentences, evaluation: Sentences, data: DataSpec) -> dict[str, int]:
    for key, sentences in (("train", train), ("evaluate", evaluation)):
        if not sentences:
            raise DataError(f"data.name = {data.name!r}: the {key} split holds no sentences. Give a longer table.")
    classes = {label: number for number, label in enumerate(sorted({label for label, _ in train}))}
    unknown = sorted({label for label, _ in evaluation} - classes.keys())
    if unknown or len(classes) < 2:
        what = f"the label {unknown[0]!r} is held out, but" if unknown else "there is nothing to tell apart:"
        raise DataError(f"data.name = {data.name!r}: {what} the training labels are {', '.join(classes)}.")
    return classes


def _rows(sentences: Sentences, classes: dict[str, int], tokenizer: Any, width: int, pad: int) -> Examples:
    tokenizer.enable_truncation(width)
    encodings = tokenizer.encode_batch([sentence for _, sentence in sentences], add_special_tokens=True)
    tokenizer.no_truncation()
    rows = np.full((len(sentences), 2 + width), pad, np.uint32)
    for row, (label, _), encoding in zip(rows, sentences, encodings, strict=True):
        _fill(row, classes[label], encoding.ids)
    return rows


def _fill(row: Examples, label: int, tokens: Sequence[int]) -> None:
    row[:2] = label, len(tokens)
    row[2 : 2 + len(tokens)] = tokens
