"""Append-only files of JSON lines: a line that was appended survives a kill, and a half-written one is ignored.

A line that a disk or a hand has damaged is no reason to lose the others: reading leaves it out and says so, and
`set_aside` moves it to a file of its own.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raysweep.errors import ArchiveError, DamagedWarning
from raysweep.records.disk import refuse_when_full

Record = TypeVar("Record")
NO_CONTROL = bytes(sorted({*range(32, 127), *range(128, 256), *b"\t\r\n"}))
LISTED = 5
"""How many line numbers a message lists."""


@dataclass(frozen=True, kw_only=True)
class DamagedLine:
    """A line that is no record."""

    number: int
    """Counted from 1."""
    why: str
    content: bytes


class JsonLines:
    """Appends to and reads the files of a folder, one JSON object a line.

    Args:
        durable: whether lines that were written before `sync` returned also survive a crash of the machine.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable
        self._unsynced: set[str] = set()
        """Files with lines that may still be in the system's cache only. A killed process does not lose them; a machine
        that crashes does."""

    def append(self, file: str, content: Mapping[str, Any]) -> None:
        """Add a line at the end of a file; the file is made where it does not exist.

        Raises:
            DiskFullError: there is no room for it.
        """
        # Encoded before the file is opened: content that is not JSON must not leave half a line.
        line = _line(content)
        with refuse_when_full(self._folder / file), open(self._folder / file, "ab+") as stream:
            # After a kill in the middle of a line, the new line would otherwise continue the broken one.
            _cut_partial_line(stream)
            stream.write(line)
        self._unsynced.add(file)

    def sync(self) -> None:
        """Wait until every line is on the disk. Called at the end of a trial, since each wait takes milliseconds."""
        for file in sorted(self._unsynced) if self._durable else ():
            with refuse_when_full(self._folder / file), open(self._folder / file, "rb") as stream:
                os.fsync(stream.fileno())
        self._unsynced.clear()

    def read(
        self, file: str, parse: Callable[[Any], Record], load: Callable[[bytes], Any] = json.loads
    ) -> Iterator[Record]:
        """Yield the records of a file, one a line; none where there is no such file.

        Lines that hold no record are left out, and a DamagedWarning names them.

        Args:
            parse: makes a record of a line's JSON value; raises a ValueError where that is none.
            load: makes the value of a line's bytes.

        Raises:
            ArchiveError: a line is a record of another schema.
        """
        damaged = []
        for line in self._parsed(file, parse, load):
            if isinstance(line, DamagedLine):
                damaged.append(line)
            else:
                yield line
        if damaged:
            text = f"{described(self._folder / file, damaged)} left out. 'raysweep resume' runs again what was lost."
            warnings.warn(text, DamagedWarning, stacklevel=2)

    def damaged(self, file: str, parse: Callable[[Any], Any]) -> list[DamagedLine]:
        """Return the lines of a file that are no records, half a line at its end included."""
        return [line for line in self._parsed(file, parse, json.loads, tail=True) if isinstance(line, DamagedLine)]

    def set_aside(self, file: str, lines: Sequence[DamagedLine]) -> None:
        """Move lines to `<file>.damaged`, each with its number and why. No other process may be writing the file."""
        for line in lines:
            # As text that shows any byte: what is wrong with it may be that it is not UTF-8.
            text = line.content.decode("utf-8", "backslashreplace")
            self.append(f"{file}.damaged", {"line": line.number, "why": line.why, "content": text})
        # A kill in between leaves the lines in both files: they are set aside once more, and nothing is lost.
        self.sync()
        numbers = {line.number for line in lines}
        self._rewrite(file, lambda number, line: [] if number in numbers else [line])

    def insert(self, file: str, contents: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        """Add lines before those of the given numbers, from 1; no other process may be writing the file."""
        new = {number: list(map(_line, some)) for number, some in contents.items()}
        self._rewrite(file, lambda number, line: [*new.get(number, ()), line])

    def _rewrite(self, file: str, change: Callable[[int, bytes], Sequence[bytes]]) -> None:
        """Replace each line of a file by others, all or none of them; what is behind the last end counts as a line."""
        path = self._folder / file
        rest = path.with_name(f".{file}.{os.getpid()}")
        old = path.read_bytes().split(b"\n") if path.exists() else [b""]
        with refuse_when_full(path), rest.open("wb") as new:
            for number, line in enumerate(old[:-1], start=1):
                new.writelines(change(number, line + b"\n"))
            new.writelines(change(len(old), old[-1]))
            new.flush()
            os.fsync(new.fileno())
        os.replace(rest, path)

    def _parsed(
        self, file: str, parse: Callable[[Any], Record], load: Callable[[bytes], Any], tail: bool = False
    ) -> Iterator[Record | DamagedLine]:
        """Yield each line as a record, or as what is wrong with it; `tail`: the last one, too, if it has no end."""
        path = self._folder / file
        if not path.exists():
            return
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                # A line without its end is the last one of a writer that was killed, or that is writing right now.
                # Bytes that no writer writes are damage all the same.
                if not (line.endswith(b"\n") or tail or _is_foreign(line)):
                    continue
                try:
                    yield _record(line, parse, load, number)
                except ArchiveError as error:
                    raise ArchiveError(f"{path}, line {number} cannot be read: {error}.") from error

    def read_since(
        self, file: str, byte: int, parse: Callable[[Any], Record], load: Callable[[bytes], Any] = json.loads
    ) -> tuple[list[Record], int]:
        """Return the records of a file's complete lines from a byte on, and the byte after the last of them."""
        path = self._folder / file
        if not path.exists():
            return [], byte
        with path.open("rb") as stream:
            stream.seek(byte)
            new = stream.read()
        # Without any line end rfind returns -1, and nothing is taken.
        whole = new[: new.rfind(b"\n") + 1]
        found = [_record(line + b"\n", parse, load) for line in whole.split(b"\n")[:-1]]
        # Damaged ones are left out without a word: whoever follows a file has read it once, and said so.
        return [record for record in found if not isinstance(record, DamagedLine)], byte + len(whole)


def described(path: Path, lines: Sequence[DamagedLine]) -> str:
    """Return the beginning of a message: `x.jsonl: line 3 (it is cut off) is damaged and`."""
    some = ", ".join(f"{line.number} ({line.why})" for line in lines[:LISTED])
    more = f" and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    are = "line {} is damaged and" if len(lines) == 1 else "lines {} are damaged and"
    return f"{path}: {are.format(some + more)}"


def _line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _record(
    line: bytes, parse: Callable[[Any], Record], load: Callable[[bytes], Any], number: int = 0
) -> Record | DamagedLine:
    try:
        if _is_foreign(line):
            raise ValueError("it holds control characters")
        if not line.endswith(b"\n"):
            raise ValueError("it is cut off")
        return parse(load(line))
    # RecursionError: brackets in brackets without end are no record either.
    except (ValueError, RecursionError) as error:
        return DamagedLine(number=number, why=str(error), content=line)


def _is_foreign(line: bytes) -> bool:
    """Return whether a line holds a control character, such as a NUL, which no JSON does."""
    return bool(line.translate(None, NO_CONTROL))


def _cut_partial_line(stream: Any) -> None:
    """Remove the bytes after the last line end, which a killed writer left."""
    end = stream.seek(0, os.SEEK_END)
    # Backwards in blocks: phase records are long, and every append comes through here, so the file is not read whole.
    while end:
        start = max(0, end - 65_536)
        stream.seek(start)
        block = stream.read(end - start)
        newline = block.rfind(b"\n")
        # The usual case: the file ends with a line end.
        if newline == len(block) - 1 and end == stream.seek(0, os.SEEK_END):
            return
        if newline >= 0:
            stream.truncate(start + newline + 1)
            return
        end = start
    # No line end anywhere: the only line is a partial one.
    stream.truncate(0)
