"""Hold the splits of a corpus: what is trained on, what a sweep chooses by, and what neither sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from raysweep.errors import DataError
from raysweep.job.spec import ColumnsSpec, DataSpec
from raysweep.trial.data.split_names import KEYS, Chosen

EVALUATION_SHARE = 0.1
"""Share of a corpus without a split to choose by that is held out."""
SAMPLE = 200
"""Characters of a split's beginning that are shown."""

Content = TypeVar("Content")
Other = TypeVar("Other")
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Split(Generic[Content]):
    """One split of a corpus as it was read."""

    content: Content
    origin: str
    """Where it came from, in words."""
    files: tuple[str, ...] = ()
    """The files that it was read from; none if it came from elsewhere."""
    repeated: int = 0
    """How many of its documents, rows or blocks stand in the training split, too."""

    def holding(self, content: Other) -> Split[Other]:
        """Return the split with another content."""
        return Split(content=content, origin=self.origin, files=self.files, repeated=self.repeated)


@dataclass(frozen=True, kw_only=True)
class Corpus(Generic[Content]):
    """The splits of a corpus."""

    train: Split[Content]
    choose: Split[Content]
    test: Split[Content] | None = None
    """None where the corpus has none."""
    left_out: tuple[str, ...] = ()
    """Files in its folder that belong to no split."""

    def named(self) -> dict[str, Split[Content]]:
        """Return the splits that there are, by their names."""
        found = {"train": self.train, "choose": self.choose, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    def with_contents(self, change: Callable[[Content], Other]) -> Corpus[Other]:
        """Return the corpus with the content of each split changed."""
        changed = {name: split.holding(change(split.content)) for name, split in self.named().items()}
        return Corpus(**changed, left_out=self.left_out)


def held_out_corpus(whole: Split[list[Item]], mark: Callable[[Item], bytes]) -> Corpus[list[Item]]:
    """Return a corpus without splits as one to train on and one to choose by.

    By hash and not by place: the held-out items come from all over the corpus, equal items are in the same split, and a
    corpus that grows at its end keeps the split of its earlier items.

    Args:
        mark: what an item is told by; items with equal marks are in the same split.
    """
    train = [item for item in whole.content if not in_evaluation(mark(item))]
    choose = [item for item in whole.content if in_evaluation(mark(item))]
    return Corpus(
        train=replace(whole, content=train, origin=f"nine parts in ten of {whole.origin}, by their hash"),
        choose=replace(whole, content=choose, origin=f"one part in ten of {whole.origin}, by its hash"),
    )


def split_corpus(
    chosen: Chosen, found: Mapping[str, Split[list[Item]]], mark: Callable[[Item], bytes]
) -> Corpus[list[Item]]:
    """Return a corpus with splits of its own; without one to choose by, that is held out of the training split.

    Args:
        found: the splits, by the names that the corpus has for them.
        mark: see `held_out_corpus`.
    """
    train = found[chosen.train]
    if chosen.choose is None:
        corpus = held_out_corpus(train, mark)
    else:
        corpus = Corpus(train=train, choose=_counted(found[chosen.choose], train, mark))
    return corpus if chosen.test is None else replace(corpus, test=_counted(found[chosen.test], train, mark))


def _counted(split: Split[list[Item]], train: Split[list[Item]], mark: Callable[[Item], bytes]) -> Split[list[Item]]:
    """Return a split with the number of its items that are trained on."""
    known = set(map(mark, train.content))
    return replace(split, repeated=sum(mark(item) in known for item in split.content))


def in_evaluation(content: bytes) -> bool:
    """Return whether content without a split of its own is held out: one in ten is, by its hash."""
    # The first four bytes of the hash are a uniform number below 2^32; no seed is involved, so all jobs agree.
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") < EVALUATION_SHARE * 2**32


def check_names_no_split(data: DataSpec, kind: str) -> None:
    """Check that a job names no split of a corpus that has none.

    Args:
        kind: what the corpus is, for the message.

    Raises:
        DataError: it does.
    """
    for key, name in zip(KEYS.values(), (data.train, data.evaluate, data.test), strict=True):
        if name is not None:
            raise DataError(f"{key} = {name!r}: data.name = {data.name!r} is one {kind} without splits. Remove {key}.")


def check_no_table(data: DataSpec, source: str) -> None:
    """Check that a job says nothing about the columns of a corpus that has none.

    Raises:
        DataError: it does.
    """
    key = "data.header" if not data.header else "data.columns" if data.columns != ColumnsSpec() else None
    if key is not None:
        raise DataError(f"{key}: {source} is no table with columns. Remove {key}.")
