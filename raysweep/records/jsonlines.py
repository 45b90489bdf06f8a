"""Append-only JSON lines: what was appended survives a kill at any byte, and a half-written line is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from raysweep.errors import ArchiveError
from raysweep.records.disk import refuse_when_full

Record = TypeVar("Record")


class JsonLines:
    """Appends to and reads from the files of a folder, one JSON object a line.

    Args:
        durable: whether lines survive a crash of the machine, too, once `sync` has returned.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable
        self._unsynced: set[str] = set()
        """Files with lines that only the system knows of so far: a killed process loses none of them."""

    def append(self, file: str, content: Mapping[str, Any]) -> None:
        """Add a line at the end of a file, which need not be there yet.

        Raises:
            DiskFullError: there is no room for it.
        """
        line = (json.dumps(content) + "\n").encode()
        with refuse_when_full(self._folder / file), open(self._folder / file, "ab+") as stream:
            _cut_partial_line(stream)
            stream.write(line)
        self._unsynced.add(file)

    def sync(self) -> None:
        """Wait until every line is on the disk; for the end of a trial, since each wait takes milliseconds."""
        for file in sorted(self._unsynced) if self._durable else ():
            with refuse_when_full(self._folder / file), open(self._folder / file, "rb") as stream:
                os.fsync(stream.fileno())
        self._unsynced.clear()

    def read(
        self, file: str, parse: Callable[[dict[str, Any]], Record], load: Callable[[bytes], Any] = json.loads
    ) -> Iterator[Record]:
        """Yield what a file's lines hold; nothing where there is no such file.

        Raises:
            ArchiveError: a line is no record, or one of another schema.
        """
        path = self._folder / file
        if not path.exists():
            return
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.endswith(b"\n"):  # the last line of a killed writer is no record yet
                    try:
                        record = parse(load(line))
                    except (AttributeError, TypeError, ValueError) as error:
                        raise ArchiveError(f"{path}, line {number} cannot be read: {error}.") from error
                    yield record

    def read_since(self, file: str, byte: int) -> tuple[list[bytes], int]:
        """Return a file's whole lines from a byte on, as they stand, and the byte to go on from."""
        path = self._folder / file
        if not path.exists():
            return [], byte
        with path.open("rb") as stream:
            stream.seek(byte)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        return whole.splitlines(), byte + len(whole)


def _cut_partial_line(stream: Any) -> None:
    """Drop what a killed writer left after the last newline."""
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        stream.seek(start)
        block = stream.read(end - start)
        newline = block.rfind(b"\n")
        if newline == len(block) - 1 and end == stream.seek(0, os.SEEK_END):
            return
        if newline >= 0:
            stream.truncate(start + newline + 1)
            return
        end = start
    stream.truncate(0)
