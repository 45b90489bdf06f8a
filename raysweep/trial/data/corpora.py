"""Load text as disjoint splits: the embedded corpus, files, folders, and data sets of the hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from raysweep.errors import DataError
from raysweep.job.names import DIGITS, EMBEDDED
from raysweep.job.spec import DataSpec
from raysweep.trial.data import hub
from raysweep.trial.data.files import TABLES, TEXTS, check_readable, check_regular, ending, read_prose
from raysweep.trial.data.local import Item, Reader, file_corpus, folder_corpus
from raysweep.trial.data.splits import (
    Corpus,
    Split,
    check_names_no_split,
    check_no_table,
    held_out_corpus,
    split_corpus,
)
from raysweep.trial.data.tables import read_table

BLOCK_CHARACTERS = 2_000
"""Size of the blocks that a text without splits is divided by."""


def load_splits(data: DataSpec) -> Corpus[str]:
    """Return the splits of a corpus of text.

    A corpus with its own splits keeps them. Otherwise each document of a table, or each block of about 2,000 characters
    of a text, is assigned by the hash of its text, one in ten to the split to choose by, so that none is in both.

    Raises:
        DataError: the corpus is missing, empty, not UTF-8, or lacks a split that the job names.
    """
    corpus = _corpus(data)
    for name, split in corpus.named().items():
        if not any(map(str.strip, split.content)):
            raise DataError(f"data.name = {data.name!r}: the {name} split holds no text. Give a longer corpus.")
    return corpus.with_contents("".join)


def _corpus(data: DataSpec) -> Corpus[list[str]]:
    """Return the blocks or documents of a corpus by split; each but the last of a text ends a line."""
    if data.name == EMBEDDED:
        check_names_no_split(data, "text")
        check_no_table(data, EMBEDDED)
        blocks = list(blocks_of(_embedded_text(), BLOCK_CHARACTERS))
        return held_out_corpus(Split(content=blocks, origin="the text inside Python"), _mark)
    reader = Reader(
        kinds=(TEXTS, TABLES), read=lambda file: _read_file(file, data), mark=_mark,
        wanted=f"no text to learn from: no file that ends with {', '.join((*TEXTS, *TABLES))}",
    )  # fmt: skip
    if (here := corpus_here(data, reader)) is not None:
        return here
    chosen, found = hub.text_splits(data)
    packed = {name: split.holding(list(_packed(split.content))) for name, split in found.items()}
    return split_corpus(chosen, packed, _mark)


def corpus_here(data: DataSpec, reader: Reader[Item]) -> Corpus[list[Item]] | None:
    """Return the corpus of a file or folder on this machine; None for a name of the hub.

    Raises:
        DataError: it cannot be read, or a name that can only be a path leads nowhere.
    """
    path = os.path.expanduser(data.name)
    # Unlike those of Path, these return False for a name that cannot be a path, such as one that is too long or empty.
    if os.path.isdir(path):
        return folder_corpus(Path(path), data, reader)
    if os.path.exists(path):
        return file_corpus(Path(path), data, reader)
    check_there(data.name)
    _check_no_header(data)
    return None


def _mark(text: str) -> bytes:
    return text.strip().encode()


def _read_file(path: Path, data: DataSpec) -> list[str]:
    """Return the documents of a table, or the blocks of a text, the last of which ends a line."""
    check_readable(path)
    if ending(path) not in TABLES:
        check_no_table(data, f"data file {str(path)!r}")
        text = read_prose(path)
        return list(blocks_of(_as_line(text), BLOCK_CHARACTERS))
    return list(_packed(_documents(path, data)))


def _documents(path: Path, data: DataSpec) -> Iterator[str]:
    """Yield the texts of a table.

    Raises:
        DataError: the column of texts holds something else.
    """
    for row in read_table(path, data, labelled=False):
        # Some tables have rows without a text; those are no fault.
        if row.text is not None and not isinstance(row.text, str):
            raise DataError(f"data file {str(path)!r}, row {row.number}: {row.text!r} is no text.")
        if row.text is not None:
            yield row.text


def _packed(documents: Iterable[str]) -> Iterator[str]:
    """Yield documents, short ones together in blocks, so that lines of one text stay together where it is split."""
    block: list[str] = []
    length = 0
    for document in documents:
        block.append(_as_line(document))
        length += len(block[-1])
        if length >= BLOCK_CHARACTERS:
            yield "".join(block)
            block, length = [], 0
    if block:
        yield "".join(block)


def _as_line(text: str) -> str:
    """Return a text that ends with a line break: some texts do, others do not."""
    return text if text.endswith("\n") else text + "\n"


def blocks_of(text: str, size: int) -> Iterator[str]:
    """Yield a text as blocks of whole lines with at least `size` characters; longer lines are cut to that size."""
    block: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), size):
            # Only a line longer than a block is cut; the usual line is one part.
            part = line[start : start + size]
            block.append(part)
            length += len(part)
            if length >= size:
                yield "".join(block)
                block, length = [], 0
    if block:
        yield "".join(block)


def _embedded_text() -> str:
    """Return the English reference text that ships inside CPython."""
    from pydoc_data.topics import topics

    # Sorted, so that the order of the dictionary does not matter.
    return "\n".join(topics[name] for name in sorted(topics))


def looks_like_path(name: str) -> bool:
    """Return whether a name is meant to be a file or folder on this machine, whether or not it exists."""
    return name.startswith((".", "/", "~")) or ending(Path(name)) in (*TEXTS, *TABLES)


def check_there(name: str) -> None:
    """Check that a name that looks like a path exists, and that what exists is a regular file or a folder.

    Raises:
        DataError: it does not, or is something else.
    """
    path = os.path.expanduser(name)
    # Without this, a mistyped path would be looked up on the hub, and the error would be one of the network. A link
    # that leads nowhere exists as a link alone.
    if os.path.lexists(path) and name not in (EMBEDDED, DIGITS):
        check_regular(path)
    elif looks_like_path(name):
        raise DataError(f"data.name = {name!r}: no such file or folder.")


def _check_no_header(data: DataSpec) -> None:
    """Check that a job does not say that a data set of the hub has no header.

    Raises:
        DataError: it does.
    """
    if not data.header:
        raise DataError(f"data.header = false: columns of data.name = {data.name!r} have names. Remove data.header.")


def is_hub_data(name: str) -> bool:
    """Return whether a corpus can only be on the hub, so that nothing on this machine tells if it exists."""
    return name not in (EMBEDDED, DIGITS) and not looks_like_path(name) and not os.path.exists(os.path.expanduser(name))
