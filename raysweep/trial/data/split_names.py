"""Tell the splits of a corpus by their names: what is trained on, what a sweep chooses by, and what it never sees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raysweep.errors import DataError, known_names_hint
from raysweep.job.spec import DataSpec

SPLIT_NAMES = ("train", "choose", "test")
"""The splits of every corpus: `train` is fitted, `choose` steers a sweep, `test` does neither."""
WORDS = {
    "train": ("train", "training", "trn", "trainset"),
    "choose": ("valid", "validation", "val", "validate", "dev", "devel", "development", "eval", "evaluation", "valset",
               "devset", "evalset"),
    "test": ("test", "testing", "tst", "heldout", "holdout", "testset"),
}  # fmt: skip
"""Words in the names of files, folders and splits of the hub, in any case, by the split that they mean."""
SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
KEYS = {"train": "data.train", "choose": "data.evaluate", "test": "data.test"}
"""The settings by which a job names a split itself."""
OTHER_GENRES = "mismatched"
"""Word for MNLI's second held-out sets, of genres that the training set has not: only a job that names one means it."""
PART = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")
"""End of the names of a split's parts, such as `train-00000-of-00002`, which together are one."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The names that a corpus has for its splits."""

    train: str
    choose: str | None
    """None where the corpus has no such split: a part of the training split is to be held out."""
    test: str | None


def group_of(parts: tuple[str, ...]) -> str:
    """Return the name of the group that a file belongs to.

    Files below a folder `train`, or named `train-00000-of-00002` and `train-00001-of-00002`, are one group.

    Args:
        parts: the file's place in its corpus: folders, and its name without ending.
    """
    told = [bool(_splits_in(part)) for part in parts]
    # A file that no split is named after is a group of its own. Where two are, `choose_splits` refuses the whole name.
    if not any(told) or len(_splits_in(" ".join(parts))) > 1:
        return "/".join(parts)
    return PART.sub("", "/".join(parts[: told.index(True) + 1]))


def has_split(name: str) -> bool:
    """Return whether a name has a word for a split."""
    return bool(_splits_in(name))


def choose_splits(names: Collection[str], data: DataSpec) -> Chosen:
    """Return the names of the splits to train on, to choose by and to test on.

    Args:
        names: what the corpus has: splits of the hub, or groups of files.

    Raises:
        DataError: there is no split to train on, or none of the name that the job asks for, or it asks for one split
            twice, or several could be meant.
    """
    asked = {"train": data.train, "choose": data.evaluate, "test": data.test}
    by_split: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
    for found in names:
        told = _splits_in(found)
        # A name that the job has itself may have the words of two splits.
        for split in told if len(told) < 2 or found not in asked.values() else ():
            by_split[split].append(found)
    _check_told(by_split, data)
    named = {split: _named(name, KEYS[split], names, data) for split, name in asked.items() if name}
    # Where the job names the training split for another use, that is refused below.
    train = named.get("train") or _only(_without(by_split["train"], named) or by_split["train"], "train", data)
    choose = named.get("choose") or _only(_without(by_split["choose"], named), "choose", data)
    test = named.get("test") or _only(_without(by_split["test"], named), "test", data)
    if train is None:
        raise DataError(
            f"data.name = {data.name!r} has no split to train on, only {', '.join(sorted(names))}. Name one with "
            "data.train."
        )
    for key, name, others in (("evaluate", choose, (train,)), ("test", test, (train, choose))):
        if name is not None and name in others:
            use = "trained on" if name == train else "chosen by"
            raise DataError(f"data.{key} = {name!r} is the split that is {use}; name another.")
    return Chosen(train=train, choose=choose, test=test)


def _splits_in(name: str) -> list[str]:
    """Return the splits that the words of a name mean."""
    # `held-out` is one word, written with a mark between; marks separate all other words.
    plain = re.sub(r"(held|hold)[^a-z0-9]+out", r"\1out", name.lower())
    # Numbers belong to parts and versions: `train1`, `test2019`.
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[^a-z0-9]+", plain)]
    return list(dict.fromkeys(SPLIT_OF[word] for word in words if word in SPLIT_OF))


def _check_told(by_split: Mapping[str, list[str]], data: DataSpec) -> None:
    """Check that no name means two splits: it could hold what is trained on and what is not.

    Raises:
        DataError: one does.
    """
    counts = Counter(name for names in by_split.values() for name in names)
    for name, count in counts.items():
        if count > 1:
            means = " and ".join(split for split, names in by_split.items() if name in names)
            raise DataError(
                f"data.name = {data.name!r}: {name!r} has the words of two splits, {means}. Rename it, or say which it "
                f"is with {', '.join(KEYS.values())}."
            )


def _named(name: str, key: str, names: Collection[str], data: DataSpec) -> str:
    """Return the split that a job names: by its own name, or by another word for the same split."""
    meant = SPLIT_OF.get(name.lower())
    found = [name] if name in names else [other for other in names if meant and _splits_in(other) == [meant]]
    if not found:
        raise DataError(f"{key} = {name!r} of data.name = {data.name!r}: {known_names_hint(name, names)}")
    only = _only(found, meant or "", data)
    assert only is not None
    return only


def _without(names: list[str], named: Mapping[str, str]) -> list[str]:
    """Return the names that the job does not use for another split."""
    return [name for name in names if name not in named.values()]


def _only(names: list[str], split: str, data: DataSpec) -> str | None:
    """Return the one name that means a split; None if there is none.

    Raises:
        DataError: there are several.
    """
    usual = [name for name in names if OTHER_GENRES not in name.lower()] or names
    if len(usual) > 1:
        raise DataError(
            f"data.name = {data.name!r}: each of {', '.join(map(repr, sorted(usual)))} could be the {split} split. "
            f"Name one with {KEYS[split]}, or put the files that belong together into one folder."
        )
    return usual[0] if usual else None
