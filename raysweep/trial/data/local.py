"""Load a corpus from a file or a folder on this machine: which files it has, and which split each belongs to."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Generic, TypeVar

from raysweep.errors import DataError
from raysweep.job.spec import DataSpec
from raysweep.trial.data.columns import NoLabelError
from raysweep.trial.data.files import ending, files_in, without_ending
from raysweep.trial.data.split_names import choose_splits, group_of, has_split
from raysweep.trial.data.splits import Corpus, Split, check_names_no_split, held_out_corpus, split_corpus

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Reader(Generic[Item]):
    """How the files of a kind of corpus are read."""

    kinds: Sequence[Collection[str]]
    """Endings of the files that are read in a folder; those of one kind can stand together."""
    read: Callable[[Path], list[Item]]
    """Returns the documents, rows or blocks of a file."""
    mark: Callable[[Item], bytes]
    """What an item is told by; see `held_out_corpus`."""
    wanted: str
    """What a folder should hold, for the message."""


def file_corpus(path: Path, data: DataSpec, reader: Reader[Item]) -> Corpus[list[Item]]:
    """Return the corpus of a single file, split by hash.

    Raises:
        DataError: the job names a split, or the file cannot be read.
    """
    check_names_no_split(data, "file")
    return held_out_corpus(_read([path], reader, path.parent), reader.mark)


def folder_corpus(folder: Path, data: DataSpec, reader: Reader[Item]) -> Corpus[list[Item]]:
    """Return the corpus of a folder, whose files or folders are named after their splits; else all files as one.

    Raises:
        DataError: it holds nothing that is read, or files of several kinds; it has no split to train on, or not one
            that the job names; two splits hold the same file, or a file cannot be read.
    """
    files = files_in(folder, {ending for kind in reader.kinds for ending in kind})
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        groups[group_of(without_ending(path.relative_to(folder)).parts)].append(path)
    asked = data.train or data.evaluate or data.test
    if not asked and not any(map(has_split, groups)):
        # No file is meant as a split: together they are one corpus.
        _check_one_kind(files, folder, reader)
        return held_out_corpus(_read(files, reader, folder), reader.mark)
    chosen = choose_splits(groups, data)
    used = {name: groups[name] for name in (chosen.train, chosen.choose, chosen.test) if name is not None}
    read = [path for paths in used.values() for path in paths]
    _check_one_kind(read, folder, reader)
    _check_different(used, data)
    found = {}
    for name, paths in used.items():
        try:
            found[name] = _read(paths, reader, folder)
        except NoLabelError:
            # The labels of a test split are often kept secret; such a split measures nothing.
            if name != chosen.test or data.test is not None:
                raise
            chosen = replace(chosen, test=None)
            read = [path for path in read if path not in paths]
    left_out = tuple(str(path.relative_to(folder)) for path in files if path not in read)
    return replace(split_corpus(chosen, found, reader.mark), left_out=left_out)


def _read(paths: Sequence[Path], reader: Reader[Item], folder: Path) -> Split[list[Item]]:
    """Return the items of some files as one split."""
    names = [str(path.relative_to(folder)) for path in paths]
    origin = ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
    content = [item for path in paths for item in reader.read(path)]
    return Split(content=content, origin=origin, files=tuple(map(str, paths)))


def _check_one_kind(files: Collection[Path], folder: Path, reader: Reader[Item]) -> None:
    """Check that all files are of one kind: a folder of texts with a table about them is not one corpus.

    Raises:
        DataError: they are not, or there is none.
    """
    if not files:
        raise DataError(f"data folder {str(folder)!r} holds {reader.wanted}.")
    present = [[path for path in files if ending(path) in kind] for kind in reader.kinds]
    if sum(map(bool, present)) > 1:
        examples = " and ".join(repr(paths[0].name) for paths in present if paths)
        raise DataError(
            f"data folder {str(folder)!r} holds files of several kinds, such as {examples}. Keep one kind, or name one "
            "file with data.name."
        )


def _check_different(used: Mapping[str, Sequence[Path]], data: DataSpec) -> None:
    """Check that no file of one split is the same as one of another, by its content.

    Raises:
        DataError: one is.
    """
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for name, paths in used.items():
        for path in paths:
            by_size[path.stat().st_size].append((name, path))
    for same in by_size.values():
        for (one, first), (other, second) in combinations(same, 2):
            if one != other and filecmp.cmp(first, second, shallow=False):
                raise DataError(
                    f"data.name = {data.name!r}: {str(first)!r} of the split {one!r} and {str(second)!r} of {other!r} "
                    "hold the same. A held-out split must not be trained on: remove one."
                )
