"""Choose the columns of a table: those that the job names, or those with a usual name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raysweep.errors import DataError, known_names_hint
from raysweep.job.spec import DataSpec

TEXTS = ("text", "sentence", "review", "content", "document", "comment", "tweet", "utterance", "article", "story")
"""Usual names of a column of texts."""
PAIRS = (
    ("sentence1", "sentence2"), ("question1", "question2"), ("question", "sentence"), ("premise", "hypothesis"),
    ("text1", "text2"),
)  # fmt: skip
"""Usual names of two columns of sentences that belong together."""
LABELS = ("label", "class", "sentiment", "category", "target", "polarity", "intent")
"""Usual names of a column of classes."""
WITHOUT_HEADER = {1: (1, None), 2: (1, 2), 4: (4, 2)}
"""Tables without a header, by their number of columns: which one holds the text and which the label, counted from 1.
SST-2 has (sentence, label), CoLA has (source, label, mark, sentence)."""


class NoLabelError(DataError):
    """A table has texts, but no column of labels."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The places of the columns that are read, from 0."""

    text: int
    second: int | None = None
    label: int | None = None


def choose_columns(names: Sequence[str], data: DataSpec, source: str, *, labelled: bool) -> Columns:
    """Return which columns of a table are read.

    Args:
        names: of the table's columns, in any case, with spaces around them.
        source: the file or data set, for messages.
        labelled: whether labels are needed, and a pair of texts may be read.

    Raises:
        DataError: there is no such column, or several could be meant.
    """
    named = data.columns
    if named.label is not None and not labelled:
        raise DataError(f"data.columns.label = {named.label!r}: the model learns from text alone. Remove it.")
    if named.second is not None and (named.text is None or not labelled):
        what = "needs data.columns.text, the first sentence of a pair" if labelled else "the model reads no pairs"
        raise DataError(f"data.columns.second = {named.second!r}: {what}.")
    text, second = (
        (_named(names, named.text, "text", source), _named(names, named.second, "second", source))
        if named.text is not None
        else _usual_text(names, data, source, labelled)
    )
    label = None
    if labelled:
        label = _named(names, named.label, "label", source)
        label = _usual(names, LABELS, "label", source) if label is None else label
    assert text is not None
    if len({text, second, label} - {None}) < sum(place is not None for place in (text, second, label)):
        raise DataError(f"{source}: data.columns names one column twice: {names[text]!r}.")
    return Columns(text=text, second=second, label=label)


def numbered(count: int, data: DataSpec, source: str, *, labelled: bool) -> Columns:
    """Return which columns of a table without a header are read.

    Args:
        count: of the table's columns.

    Raises:
        DataError: the job does not say which, and the table has not the form of SST-2 or CoLA.
    """
    names = [str(number) for number in range(1, count + 1)]
    text, label = WITHOUT_HEADER.get(count, (None, None))
    named = data.columns
    if (text is None and named.text is None) or (labelled and label is None and named.label is None):
        keys = "data.columns.text and data.columns.label" if labelled else "data.columns.text"
        raise DataError(f"{source} has {count} columns and no header. Say by {keys} which are read: 1 is the first.")
    filled = {"text": named.text or str(text), "second": named.second}
    if labelled:
        filled["label"] = named.label or str(label)
    columns = named.model_copy(update=filled)
    return choose_columns(names, data.model_copy(update={"columns": columns}), source, labelled=labelled)


def names_columns(names: Sequence[str]) -> bool:
    """Return whether the first line of a table reads as a header: it has usual names for a text and a label."""
    plain = {_plain(name) for name in names}
    texts = {*TEXTS, *(name for pair in PAIRS for name in pair)}
    return bool(plain & texts) and (len(names) == 1 or bool(plain & set(LABELS)))


def _plain(name: str) -> str:
    """Return a column's name as it is compared: in lower case, words joined by one mark."""
    return re.sub(r"[\W_]+", "_", name.strip().casefold()).strip("_")


def _named(names: Sequence[str], name: str | None, key: str, source: str) -> int | None:
    """Return the place of the column that a job names; None if it names none."""
    if name is None:
        return None
    # Its exact name wins over one that differs in case or spaces.
    exact = [place for place, other in enumerate(names) if other.strip() == name.strip()]
    found = exact or [place for place, other in enumerate(names) if _plain(other) == _plain(name)]
    if len(found) != 1:
        why = f"it has {len(found)} columns of that name" if found else known_names_hint(name, names)
        raise DataError(f"data.columns.{key} = {name!r} of {source}: {why}")
    return found[0]


def _usual_text(
    names: Sequence[str], data: DataSpec, source: str, labelled: bool
) -> tuple[int, int | None]:  # fmt: skip
    """Return the places of a text, or of a pair of texts, by usual names."""
    plain = [_plain(name) for name in names]
    pairs = [pair for pair in PAIRS if set(pair) <= set(plain)] if labelled else []
    rest = [name for name in TEXTS if name in plain and not any(name in pair for pair in pairs)]
    if len(pairs) == 1 and not rest:
        first, second = (_usual(names, (name,), "text", source) for name in pairs[0])
        return first, second
    if pairs:
        raise _several(names, "text", source, [*(name for pair in pairs for name in pair), *rest])
    return _usual(names, TEXTS, "text", source), None


def _usual(names: Sequence[str], usual: Sequence[str], key: str, source: str) -> int:
    """Return the place of the one column with one of the usual names.

    Raises:
        DataError: there is none, or there are several.
    """
    found = [place for place, name in enumerate(names) if _plain(name) in usual]
    if not found:
        kind = NoLabelError if key == "label" else DataError
        raise kind(
            f"{source}: its first line names no column of {key}s ({', '.join(usual)}), but {_listed(names)}. Name it "
            f"with data.columns.{key}; say data.header: false if the first line is no header."
        )
    if len(found) > 1:
        raise _several(names, key, source, [names[place] for place in found])
    return found[0]


def _several(names: Sequence[str], key: str, source: str, found: Sequence[str]) -> DataError:
    return DataError(
        f"{source}: each of {', '.join(map(repr, found))} could be the column of {key}s. Name it with "
        f"data.columns.{key}; other columns are left out."
    )


def _listed(names: Sequence[str]) -> str:
    """Return names for a message, cut where a line of text was taken for a header."""
    shown = [name if len(name) <= 40 else name[:40] + "…" for name in names[:8]]
    return ", ".join(map(repr, shown)) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
