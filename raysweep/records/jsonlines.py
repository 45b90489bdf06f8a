"""Append-only files of JSON lines: a line that was appended survives a kill, and a half-written one is ignored."""

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
        line = (json.dumps(content) + "\n").encode()
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
        self, file: str, parse: Callable[[dict[str, Any]], Record], load: Callable[[bytes], Any] = json.loads
    ) -> Iterator[Record]:
        """Yield the records of a file, one a line; none where there is no such file.

        Args:
            parse: makes a record of the object in a line.
            load: makes the object of a line's bytes.

        Raises:
            ArchiveError: a line is no record, or a record of another schema.
        """
        path = self._folder / file
        if not path.exists():
            return
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                # A line without its end is the last one of a writer that was killed, or that is writing right now.
                if line.endswith(b"\n"):
                    try:
                        record = parse(load(line))
                    except (AttributeError, TypeError, ValueError) as error:
                        raise ArchiveError(f"{path}, line {number} cannot be read: {error}.") from error
                    yield record

    def read_since(self, file: str, byte: int) -> tuple[list[bytes], int]:
        """Return a file's complete lines from a byte on, and the byte after the last of them."""
        path = self._folder / file
        if not path.exists():
            return [], byte
        with path.open("rb") as stream:
            stream.seek(byte)
            new = stream.read()
        # Without any line end rfind returns -1, and nothing is taken.
        whole = new[: new.rfind(b"\n") + 1]
        return whole.splitlines(), byte + len(whole)


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
