"""Load text as two disjoint splits: the embedded corpus, files, folders, and data sets of the hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from raysweep.errors import DataError, known_names_hint
from raysweep.job.names import DIGITS, EMBEDDED, HUB
from raysweep.job.spec import DataSpec

STREAMED = {"c4": ("train", "validation")}
"""Data sets too large to download, with their splits: only as much as `data.max_tokens` asks for is read."""


EVALUATION_STEMS = ("validation", "validation_matched", "valid", "dev", "eval", "test")
"""Names of held-out splits, the preferred first."""


BLOCK_CHARACTERS = 2_000
"""Size of the blocks that a text without splits is divided by."""


EVALUATION_SHARE = 0.1
"""Share of the blocks that is held out."""


STREAMED_EVALUATION_CHARACTERS = 2_000_000
"""Characters of a streamed held-out split that are read."""


# More than an English token has on average, so that a stream yields enough; the token store cuts to the exact count.
CHARACTERS_PER_TOKEN = 5


def load_splits(data: DataSpec) -> tuple[str, str]:
    """Return the training and the held-out text of a corpus.

    A corpus with its own splits keeps them. Otherwise each block of about 2,000 characters is assigned by the hash of
    its text, one in ten to the held-out split, so that no block is in both.

    Raises:
        DataError: the corpus is missing, empty, not UTF-8, or lacks a split that the job names.
    """
    path = os.path.expanduser(data.name)
    if data.name == EMBEDDED:
        train, evaluation = _split_whole(_embedded_text(), data)
    # Unlike Path.is_file, these return False for a name that cannot be a path, such as one that is too long.
    elif os.path.isfile(path):
        train, evaluation = _split_whole(_read_text(Path(path)), data)
    elif os.path.isdir(path):
        train, evaluation = _folder_splits(Path(path), data)
    else:
        check_there(data.name)
        train, evaluation = _hub_splits(data)
    for key, text in (("train", train), ("evaluate", evaluation)):
        if not text.strip():
            raise DataError(f"data.name = {data.name!r}: the {key} split holds no text. Give a longer corpus.")
    return train, evaluation


def _split_whole(text: str, data: DataSpec) -> tuple[str, str]:
    check_names_no_split(data, "text")
    return split_by_hash(text)


def check_names_no_split(data: DataSpec, kind: str) -> None:
    """Check that a job names no split of a corpus that has none.

    Args:
        kind: what the corpus is, for the message.

    Raises:
        DataError: it does.
    """
    for key, name in (("data.train", data.train), ("data.evaluate", data.evaluate)):
        if name is not None:
            raise DataError(f"{key} = {name!r}: data.name = {data.name!r} is one {kind} without splits. Remove {key}.")


def split_by_hash(text: str) -> tuple[str, str]:
    """Split one text into disjoint training and held-out parts by the hash of each block of whole lines."""
    # By hash and not by place: the held-out blocks come from all over the text, equal blocks land in the same split,
    # and a text that grows at its end keeps the split of its earlier blocks.
    train: list[str] = []
    evaluation: list[str] = []
    for block in blocks_of(text, BLOCK_CHARACTERS):
        (evaluation if in_evaluation(block.strip().encode()) else train).append(block)
    return "".join(train), "".join(evaluation)


def in_evaluation(content: bytes) -> bool:
    """Return whether content without a split of its own is held out: one in ten is, by its hash."""
    # The first four bytes of the hash are a uniform number below 2^32; no seed is involved, so all jobs agree.
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") < EVALUATION_SHARE * 2**32


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


def _read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: it cannot be read, is empty, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"data file {str(path)!r} is not UTF-8 text (byte {error.start}). Convert it first.") from None
    except OSError as error:
        raise DataError(f"data file {str(path)!r} cannot be read ({error.strerror}).") from None
    if not text.strip():
        raise DataError(f"data file {str(path)!r} is empty.")
    return text


def _folder_splits(folder: Path, data: DataSpec) -> tuple[str, str]:
    """Return the splits of a folder of text files, which are named after their splits; else all files as one text."""
    files = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if not files:
        raise DataError(f"data folder {str(folder)!r} holds no .txt file.")
    # Without a file named train, and without names in the job, no file is meant as a split.
    if not (data.train or data.evaluate or "train" in files):
        return split_by_hash("\n".join(_read_text(path) for path in files.values()))
    train, evaluation = choose_splits(files, data)
    if evaluation is None:
        return split_by_hash(_read_text(files[train]))
    return _read_text(files[train]), _read_text(files[evaluation])


def choose_splits(names: Collection[str], data: DataSpec) -> tuple[str, str | None]:
    """Return the names of the split to train on and of the held-out split.

    The second is None if the corpus has none: its training split is then to be split by hash.

    Args:
        names: splits of the corpus.

    Raises:
        DataError: there is no split of the name that the job asks for, or it asks for one split twice.
    """
    train = data.train or "train"
    # A job may train on a split that is held out elsewhere, such as `test`; it is then not evaluated on, too.
    evaluation = data.evaluate or next((name for name in EVALUATION_STEMS if name in names and name != train), None)
    for key, name in (("data.train", train), ("data.evaluate", evaluation)):
        if name is not None and name not in names:
            raise DataError(f"{key} = {name!r} of data.name = {data.name!r}: {known_names_hint(name, names)}")
    if train == evaluation:
        raise DataError(f"data.evaluate = {evaluation!r} is the split that is trained on; name another.")
    return train, evaluation


def looks_like_path(name: str) -> bool:
    """Return whether a name is meant to be a file or folder on this machine, whether or not it exists."""
    return name.startswith((".", "/", "~")) or name.endswith(".txt")


def check_there(name: str) -> None:
    """Check that a name that looks like a path exists.

    Raises:
        DataError: it does not.
    """
    # Without this, a mistyped path would be looked up on the hub, and the error would be one of the network.
    if looks_like_path(name) and not os.path.exists(os.path.expanduser(name)):
        raise DataError(f"data.name = {name!r}: no such file or folder.")


def is_hub_data(name: str) -> bool:
    """Return whether a corpus can only be on the hub, so that nothing on this machine tells if it exists."""
    return name not in (EMBEDDED, DIGITS) and not looks_like_path(name) and not os.path.exists(os.path.expanduser(name))


def _hub_splits(data: DataSpec) -> tuple[str, str]:
    """Return the splits of a data set on the hub, or in the cache of `datasets`."""
    path, configuration, revision, column = HUB.get(data.name, (data.name, None, None, "text"))
    if data.name in STREAMED:
        return _streamed_splits(path, configuration, column, data)
    import datasets

    with _text_errors(data.name):
        loaded = datasets.load_dataset(path, configuration, revision=revision)
        train, evaluation = choose_splits(list(loaded), data)
        text = _join(_texts(loaded[train], column, data.name))
        if evaluation is None:
            return split_by_hash(text)
        return text, _join(_texts(loaded[evaluation], column, data.name))


def _streamed_splits(path: str, configuration: str | None, column: str, data: DataSpec) -> tuple[str, str]:
    """Return the beginnings of the splits of a data set that is too large to download."""
    import datasets

    def read(split: str, characters: int) -> str:
        rows = datasets.load_dataset(path, configuration, split=split, streaming=True)
        return _join(_until(_texts(rows, column, data.name), characters))

    # The checks of a job ask for `data.max_tokens` wherever its corpus is streamed.
    assert data.max_tokens is not None
    train, evaluation = choose_splits(STREAMED[data.name], data)
    assert evaluation is not None
    with _text_errors(data.name):
        text = read(train, data.max_tokens * CHARACTERS_PER_TOKEN)
        return text, read(evaluation, STREAMED_EVALUATION_CHARACTERS)


def _text_errors(name: str) -> AbstractContextManager[None]:
    return hub_errors(name, [EMBEDDED, *HUB], f"a text file, a folder of text files, or {EMBEDDED!r}")


@contextmanager
def hub_errors(name: str, known: Collection[str], local: str) -> Iterator[None]:
    """Raise one DataError, which says that a corpus cannot be loaded, for whatever error `datasets` raises.

    Args:
        known: names of data sets on the hub that are known to suit.
        local: what a user can give instead without a network.
    """
    try:
        yield
    except DataError:
        # Raised by our own reading of rows inside the block: it says more than the general error would.
        raise
    except Exception as error:
        # `datasets` hands on the errors of its many readers and of the network, so no narrower class would do.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        way_out = f"Without a network, give {local}." if name in known else known_names_hint(name, known)
        raise DataError(
            f"data.name = {name!r} is neither a file or folder here nor a data set that can be loaded "
            f"({type(error).__name__}: {reason}). {way_out}"
        ) from error


def _texts(rows: Iterable[Mapping[str, Any]], column: str, name: str) -> Iterator[str]:
    """Yield the texts of a column; rows without a text are left out.

    Raises:
        DataError: there is no such column, or it holds something else.
    """
    for row in rows:
        if column not in row:
            raise DataError(f"data.name = {name!r}: no column {column!r}; it has {', '.join(row)}.")
        text = row[column]
        # Some data sets have rows without a text; those are no fault.
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise DataError(f"data.name = {name!r}: column {column!r} holds {type(text).__name__}, not text.")


def _until(texts: Iterator[str], characters: int) -> Iterator[str]:
    """Yield texts until they have so many characters together."""
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _join(texts: Iterable[str]) -> str:
    """Join texts, each on lines of its own: some data sets end each with a line break, others do not."""
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts)
