"""Load data sets of the hub, or from the cache of `datasets`: their splits and columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from raysweep.errors import DataError, known_names_hint
from raysweep.job.names import EMBEDDED, GLUE, HUB
from raysweep.job.spec import DataSpec
from raysweep.records.disk import UNUSABLE
from raysweep.trial.data.columns import choose_columns
from raysweep.trial.data.split_names import Chosen, choose_splits
from raysweep.trial.data.splits import Split
from raysweep.trial.data.tables import Row

STREAMED = {"c4": ("train", "validation")}
"""Data sets too large to download, with their splits: only as much as `data.max_tokens` asks for is read."""


STREAMED_EVALUATION_CHARACTERS = 2_000_000
"""Characters of a streamed held-out split that are read."""


# More than an English token has on average, so that a stream yields enough; the token store cuts to the exact count.
CHARACTERS_PER_TOKEN = 5

Item = TypeVar("Item")


def text_splits(data: DataSpec) -> tuple[Chosen, dict[str, Split[list[str]]]]:
    """Return which splits of a data set are read, and their texts by the data set's names for the splits.

    Raises:
        DataError: the data set cannot be loaded, or has no such splits or columns.
    """
    path, configuration, revision, known = HUB.get(data.name, (data.name, None, None, None))
    with hub_errors(data.name, [EMBEDDED, *HUB], f"a text file, a folder of text files, or {EMBEDDED!r}"):
        if data.name in STREAMED:
            return _streamed(path, configuration, data)
        chosen, loaded = _loaded(path, configuration, revision, data)
        texts = {}
        for name, rows in loaded.items():
            # Data sets of which the column of text is known need no search for it.
            column = known if known and not data.columns.text else _text_column(rows.column_names, data)
            texts[name] = _split(list(_texts(rows, column, data.name)), name, data)
        return chosen, texts


def labelled_splits(data: DataSpec) -> tuple[Chosen, dict[str, Split[list[Row]]]]:
    """Return which splits of a data set are read, and their rows; GLUE's tasks go by their own names.

    Raises:
        DataError: the data set cannot be loaded, or has no such splits or columns.
    """
    path, configuration = ("nyu-mll/glue", data.name) if data.name in GLUE else (data.name, None)
    with hub_errors(data.name, GLUE, "a .tsv file or a folder of them"):
        chosen, loaded = _loaded(path, configuration, None, data)
        return chosen, {name: _split(list(_rows(rows, data)), name, data) for name, rows in loaded.items()}


def _split(content: list[Item], name: str, data: DataSpec) -> Split[list[Item]]:
    return Split(content=content, origin=f"split {name!r} of {data.name}")


def _loaded(
    path: str, configuration: str | None, revision: str | None, data: DataSpec
) -> tuple[Chosen, dict[str, Any]]:  # fmt: skip
    """Return which splits of a data set are read, and their rows."""
    import datasets

    # The revision is named only where there is one: a folder takes none.
    options = {} if revision is None else {"revision": revision}
    loaded = datasets.load_dataset(path, configuration, **options)
    chosen = choose_splits(list(loaded), data)
    return chosen, {name: loaded[name] for name in (chosen.train, chosen.choose, chosen.test) if name is not None}


def _rows(rows: Any, data: DataSpec) -> Iterator[Row]:
    """Yield the rows of a split."""
    names = rows.column_names
    columns = choose_columns(names, data, f"data.name = {data.name!r}", labelled=True)
    places = (columns.text, columns.second, columns.label)
    for number, row in enumerate(rows, 1):
        yield Row(number, *(None if place is None else row[names[place]] for place in places))


def _text_column(names: Sequence[str], data: DataSpec) -> str:
    return names[choose_columns(names, data, f"data.name = {data.name!r}", labelled=False).text]


def _streamed(
    path: str, configuration: str | None, data: DataSpec
) -> tuple[Chosen, dict[str, Split[list[str]]]]:  # fmt: skip
    """Return the beginnings of the splits of a data set that is too large to download."""
    import datasets

    def read(split: str, characters: int) -> Split[list[str]]:
        rows = datasets.load_dataset(path, configuration, split=split, streaming=True)
        texts = list(_until(_texts(rows, data.columns.text or "text", data.name), characters))
        return Split(content=texts, origin=f"the beginning of split {split!r} of {data.name}")

    # The checks of a job ask for `data.max_tokens` wherever its corpus is streamed.
    assert data.max_tokens is not None
    chosen = choose_splits(STREAMED[data.name], data)
    assert chosen.choose is not None
    train = read(chosen.train, data.max_tokens * CHARACTERS_PER_TOKEN)
    return chosen, {chosen.train: train, chosen.choose: read(chosen.choose, STREAMED_EVALUATION_CHARACTERS)}


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
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise _not_loaded(name, known, local, error) from error
        raise DataError(
            f"data.name = {name!r}: the cache of the hub cannot be written ({error.strerror}: {error.filename}). Free "
            "room there, or set HF_HOME to a folder that can be written."
        ) from error
    except Exception as error:
        # `datasets` hands on the errors of its many readers and of the network, so no narrower class would do.
        raise _not_loaded(name, known, local, error) from error


def _not_loaded(name: str, known: Collection[str], local: str, error: Exception) -> DataError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
    way_out = f"Without a network, give {local}." if name in known else known_names_hint(name, known)
    return DataError(
        f"data.name = {name!r} is neither a file or folder here nor a data set that can be loaded "
        f"({type(error).__name__}: {reason}). {way_out}"
    )


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
