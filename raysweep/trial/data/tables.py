"""Read the rows of tables: .csv, .tsv, .jsonl, .json and .parquet files."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raysweep.errors import DataError
from raysweep.job.spec import DataSpec
from raysweep.trial.data.columns import Columns, NoLabelError, choose_columns, names_columns, numbered
from raysweep.trial.data.files import ending, read_bytes, read_text

DELIMITERS = (",", ";", "\t", "|")
"""What separates the cells of a .csv or .tsv file. Excel writes semicolons where a comma is the decimal mark."""


class Row(NamedTuple):
    """The cells of one row that are read, as the file has them."""

    number: int
    """Its line, or its place among the rows, from 1."""
    text: Any
    second: Any
    label: Any


class _Table(NamedTuple):
    """A table whose columns are known, and whose rows are read when they are asked for."""

    names: Sequence[str]
    rows: Callable[[Columns], Iterator[Row]]


def read_table(path: Path, data: DataSpec, *, labelled: bool) -> list[Row]:
    """Return the rows of a table.

    Args:
        labelled: whether labels are needed, and a pair of texts may be read.

    Raises:
        DataError: it cannot be read as such a table; the message names the file and the row.
    """
    source = f"data file {str(path)!r}"
    kind = ending(path)
    if kind in (".csv", ".tsv"):
        found = _csv_rows(path, data, labelled=labelled)
    elif not data.header:
        raise DataError(f"data.header = false: {source} is no .csv or .tsv file, its columns have names. Remove it.")
    else:
        table = _parquet(path) if kind == ".parquet" else _json(path)
        found = list(table.rows(choose_columns(table.names, data, source, labelled=labelled)))
    if not found:
        raise DataError(f"{source} has no rows.")
    return found


def _csv_rows(path: Path, data: DataSpec, *, labelled: bool) -> list[Row]:
    """Return the rows of a .csv or .tsv file, by the first delimiter at which its columns are found."""
    text, source = read_text(path), f"data file {str(path)!r}"
    usual = "\t" if ending(path) == ".tsv" else ","
    refusals: list[DataError] = []
    for delimiter in (usual, *(other for other in DELIMITERS if other != usual)):
        # A quotation mark in a .tsv is text: neither SST-2 nor CoLA quotes anything.
        quoted = not (usual == delimiter == "\t")
        try:
            lines = _lines(text, delimiter, quoted, source)
            if data.header:
                columns = choose_columns(lines[0][1], data, source, labelled=labelled)
            else:
                columns = _numbered(lines, data, source, labelled=labelled)
        except DataError as error:
            refusals.append(error)
        else:
            return list(_cells(lines, columns, data.header, source))
    # That of the usual delimiter says most, unless another one found a column of texts.
    raise next((error for error in refusals if isinstance(error, NoLabelError)), refusals[0])


def _lines(text: str, delimiter: str, quoted: bool, source: str) -> list[tuple[int, list[str]]]:
    """Return the cells of each line that has any, with its number.

    Raises:
        DataError: a quotation mark stands where the format has none, or no line has a cell.
    """
    # The module's own limit is 131,072 characters, less than a long document has.
    csv.field_size_limit(sys.maxsize)
    # Strict, so that a quotation mark that nothing closes is an error: it would swallow the rest of the file.
    style: dict[str, Any] = {"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **style)
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(
            f"{source}, row {reader.line_num}: {error}. Put cells with quotation marks in quotation marks, and double "
            "those inside."
        ) from None
    if not lines:
        raise DataError(f"{source} has no rows.")
    return lines


def _numbered(
    lines: Sequence[tuple[int, list[str]]], data: DataSpec, source: str, *, labelled: bool
) -> Columns:  # fmt: skip
    """Return the columns of a table without a header.

    Raises:
        DataError: its first line is a header, or its lines differ in length at this delimiter.
    """
    first = lines[0][1]
    if names_columns(first):
        raise DataError(
            f"data.header = false, but the first line of {source} is a header: {first}. Remove data.header."
        )
    for number, cells in lines:
        if len(cells) != len(first):
            raise _uneven(source, number, len(cells), len(first))
    return numbered(len(first), data, source, labelled=labelled)


def _cells(
    lines: Sequence[tuple[int, list[str]]], columns: Columns, header: bool, source: str
) -> Iterator[Row]:  # fmt: skip
    width = len(lines[0][1])
    for number, cells in lines[header:]:
        if len(cells) != width:
            raise _uneven(source, number, len(cells), width)
        yield _row(number, cells, columns)


def _uneven(source: str, number: int, found: int, expected: int) -> DataError:
    return DataError(
        f"{source}, row {number}: {found} cells, but the first line has {expected}. Quote cells that hold a delimiter."
    )


def _row(number: int, cells: Sequence[Any], columns: Columns) -> Row:
    places = (columns.text, columns.second, columns.label)
    return Row(number, *(None if place is None else cells[place] for place in places))


def _json(path: Path) -> _Table:
    """Return a table of JSON: an object on each line, or one list of objects."""
    source = f"data file {str(path)!r}"
    text = read_text(path).strip()
    if text.startswith("["):
        objects = [(number, row) for number, row in enumerate(_parsed(text, source, 1), 1)]
    else:
        objects = [(n, _parsed(line, source, n)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, row in objects:
        if not isinstance(row, dict):
            raise DataError(f"{source}, row {number} is no JSON object with a column for each key. Write one a line.")
    # Keys that only some rows have count, too: a text may be missing in the first.
    names = list(dict.fromkeys(name for _, row in objects for name in row))

    def rows(columns: Columns) -> Iterator[Row]:
        for number, row in objects:
            yield _row(number, [row.get(name) for name in names], columns)

    return _Table(names, rows)


def _parsed(text: str, source: str, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}, row {number} is not valid JSON ({error}). Write one object on each line, or one list of them."
        ) from None


def _parquet(path: Path) -> _Table:
    """Return a table of a .parquet file, of which only the columns that are needed are read."""
    # Imported here: most corpora are none, and it takes a quarter of a second.
    import pyarrow
    import pyarrow.parquet

    source = f"data file {str(path)!r}"
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(read_bytes(path)))
        names = file.schema_arrow.names
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source} cannot be read as Parquet ({str(error).splitlines()[0]}).") from None

    def rows(columns: Columns) -> Iterator[Row]:
        wanted = [names[place] for place in (columns.text, columns.second, columns.label) if place is not None]
        try:
            read: Mapping[str, list[Any]] = file.read(columns=wanted).to_pydict()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{source} cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
        for number in range(file.metadata.num_rows):
            cells = [read[name][number] if name in read else None for name in names]
            yield _row(number + 1, cells, columns)

    return _Table(names, rows)
