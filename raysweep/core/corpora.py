"""Where text comes from: the embedded corpus, files and folders, and hub data sets; always as disjoint splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from raysweep.errors import DataError, known_names_hint
from raysweep.spec import DataSpec

EMBEDDED = "python-docs"
HUB = {
    # name: (path on the hub, configuration, revision, column). Script-only data sets are read from the hub's parquet copy.
    "tiny_shakespeare": ("karpathy/tiny_shakespeare", None, "refs/convert/parquet", "text"),
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1", None, "text"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1", None, "text"),
    "bookcorpus": ("bookcorpus/bookcorpus", None, "refs/convert/parquet", "text"),
    "c4": ("allenai/c4", "en", None, "text"),
}
EVALUATION_STEMS = ("validation", "valid", "dev", "eval", "test")
BLOCK_CHARACTERS = 2_000
EVALUATION_SHARE = 0.1
STREAMED_EVALUATION_CHARACTERS = 2_000_000
CHARACTERS_PER_TOKEN = 5  # generous for English; the token store cuts to the exact count


def load_splits(data: DataSpec) -> tuple[str, str]:
    """Return the training and the held-out text of a corpus.

    A corpus with its own splits keeps them; otherwise blocks of about 2,000 characters are assigned by the hash of
    their text, one in ten to the held-out split, so that no block stands in both.

    Raises:
        DataError: the corpus is missing, empty, not UTF-8, or lacks a split that the job names.
    """
    if data.name == EMBEDDED:
        train, evaluation = split_by_hash(_embedded_text())
    elif Path(data.name).is_file():
        train, evaluation = split_by_hash(_read_text(Path(data.name)))
    elif Path(data.name).is_dir():
        train, evaluation = _folder_splits(Path(data.name), data)
    elif _looks_like_path(data.name):
        raise DataError(f"data.name = {data.name!r}: no such file or folder.")
    else:
        train, evaluation = _hub_splits(data)
    for key, text in (("train", train), ("evaluate", evaluation)):
        if not text.strip():
            raise DataError(f"data.name = {data.name!r}: the {key} split holds no text. Give a longer corpus.")
    return train, evaluation


def split_by_hash(text: str) -> tuple[str, str]:
    """Split one text into disjoint training and held-out parts by the hash of each block of whole lines."""
    train, evaluation = [], []
    for block in _blocks(text):
        digest = hashlib.sha256(block.strip().encode()).digest()
        part = evaluation if int.from_bytes(digest[:4], "big") < EVALUATION_SHARE * 2**32 else train
        part.append(block)
    return "".join(train), "".join(evaluation)


def _blocks(text: str) -> Iterator[str]:
    block: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        block.append(line)
        length += len(line)
        if length >= BLOCK_CHARACTERS:
            yield "".join(block)
            block, length = [], 0
    if block:
        yield "".join(block)


def _embedded_text() -> str:
    """Return the English reference text that ships inside CPython."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _read_text(path: Path) -> str:
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
    files = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if not files:
        raise DataError(f"data folder {str(folder)!r} holds no .txt file.")
    if data.train or data.evaluate or "train" in files:
        train = data.train or "train"
        evaluation = data.evaluate or next((stem for stem in EVALUATION_STEMS if stem in files and stem != train), None)
        if evaluation is None:
            raise DataError(f"data folder {str(folder)!r}: say which file to evaluate on with data.evaluate.")
        for key, stem in (("data.train", train), ("data.evaluate", evaluation)):
            if stem not in files:
                raise DataError(f"{key} = {stem!r} in folder {str(folder)!r}: {known_names_hint(stem, files)}")
        if train == evaluation:
            raise DataError(f"data.evaluate = {evaluation!r} is the split trained on; name another.")
        return _read_text(files[train]), _read_text(files[evaluation])
    return split_by_hash("\n".join(_read_text(path) for path in files.values()))


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".txt")


def _hub_splits(data: DataSpec) -> tuple[str, str]:
    path, configuration, revision, column = HUB.get(data.name, (data.name, None, None, "text"))
    if data.name == "c4":
        return _streamed_splits(path, configuration, column, data)
    import datasets

    loaded = _from_hub(data.name, lambda: datasets.load_dataset(path, configuration, revision=revision))
    names = list(loaded)
    train = data.train or "train"
    evaluation = data.evaluate or next((name for name in EVALUATION_STEMS if name in names), None)
    for key, name in (("data.train", train), ("data.evaluate", evaluation)):
        if name is not None and name not in names:
            raise DataError(f"{key} = {name!r} of {data.name!r}: {known_names_hint(name, names)}")
    if evaluation is None:
        return split_by_hash(_join(_rows(loaded[train], column, data.name)))
    return _join(_rows(loaded[train], column, data.name)), _join(_rows(loaded[evaluation], column, data.name))


def _streamed_splits(path: str, configuration: str | None, column: str, data: DataSpec) -> tuple[str, str]:
    import datasets

    def read(split: str, characters: int) -> str:
        rows = _from_hub(data.name, lambda: datasets.load_dataset(path, configuration, split=split, streaming=True))
        return _join(_until(_rows(rows, column, data.name), characters))

    assert data.max_tokens is not None
    train = read(data.train or "train", data.max_tokens * CHARACTERS_PER_TOKEN)
    return train, read(data.evaluate or "validation", STREAMED_EVALUATION_CHARACTERS)


def _from_hub(name: str, load: Any) -> Any:
    try:
        return load()
    except (
        Exception
    ) as error:  # datasets raises what its many readers raise; each means that the corpus is not to be had
        known = [EMBEDDED, *HUB]
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"data.name = {name!r} is neither a file or folder here nor a data set that can be loaded "
            f"({type(error).__name__}: {reason}). {known_names_hint(name, known)}"
        ) from error


def _rows(dataset: Any, column: str, name: str) -> Iterator[str]:
    for row in dataset:
        if column not in row:
            raise DataError(f"data.name = {name!r}: no column {column!r}; it has {', '.join(row)}.")
        yield row[column]


def _until(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _join(texts: Iterable[str]) -> str:
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts)
