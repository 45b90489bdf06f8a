"""Find the files of a corpus and read them: regular files alone, hidden ones left out, compressed ones unpacked."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from raysweep.errors import DataError
from raysweep.records.disk import LFS_POINTER

TEXTS = (".txt", ".text", ".tokens", ".raw")
"""Endings of text files in a folder; a single file may have any other that is not in `REFUSED`."""
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of files whose texts stand in a column."""
OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Endings of compressed files; the ending before it says what is inside."""
REFUSED = (
    ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar", ".pdf", ".docx", ".doc", ".odt", ".xlsx", ".xls", ".html", ".htm",
    ".xml", ".arrow", ".feather", ".npy", ".npz", ".pt", ".bin", ".pkl", ".pickle", ".h5", ".db", ".sqlite", ".yaml",
    ".yml",
)  # fmt: skip
"""Endings of files that hold more than plain text, or something else: their bytes are no text to learn from."""
MOST_FILES = 100_000
"""Files of a folder that are looked at: more stand in no corpus, but in a folder such as / or a home."""
KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Beginnings of a file by which Windows programs name its encoding."""


def check_regular(path: str | Path) -> None:
    """Check that a path is a regular file or a folder, or a link to one.

    Raises:
        DataError: it is something else, such as a FIFO, whose reader would wait for ever, or cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"data file {str(path)!r} cannot be read ({reason}).") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = KINDS.get(stat.S_IFMT(mode), "neither")
        raise DataError(f"data file {str(path)!r} is {kind}. Give a regular file or a folder.")


def ending(path: Path) -> str:
    """Return a file's ending in lower case, that of what is inside if it is compressed: `.jsonl` of `a.JSONL.gz`."""
    if path.suffix.lower() in OPENERS:
        path = path.with_suffix("")
    return path.suffix.lower()


def without_ending(path: Path) -> Path:
    """Return a path without its ending, and without that of its compression."""
    if path.suffix.lower() in OPENERS:
        path = path.with_suffix("")
    return path.with_suffix("") if path.suffix.lower() in (*TEXTS, *TABLES) else path


def check_readable(path: Path) -> None:
    """Check by its ending that a single file is text or a table.

    Raises:
        DataError: it is a kind of file that holds something else.
    """
    found = path.suffix.lower() if path.suffix.lower() in REFUSED else ending(path)
    if found in REFUSED:
        raise DataError(
            f"data file {str(path)!r}: {found} files are not read. Convert it to plain text (.txt) or to a table "
            f"({', '.join(TABLES)}), either also compressed ({', '.join(OPENERS)})."
        )


def files_in(folder: Path, endings: Collection[str]) -> list[Path]:
    """Return the files below a folder that have one of these endings, in the order of their names.

    Hidden files and folders are left out, as are those that programs leave behind (`__MACOSX`, `a.txt~`).

    Raises:
        DataError: one of them is no regular file, or there are too many files to be a corpus.
    """
    found: list[Path] = []
    for count, path in enumerate(_walk(folder)):
        if count >= MOST_FILES:
            raise DataError(f"data folder {str(folder)!r} holds more than {MOST_FILES:,} files. Name a smaller folder.")
        if ending(path) in endings:
            check_regular(path)
            found.append(path)
    return sorted(found)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden; a folder that several links lead to is entered once."""
    entered = set()
    for inner, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(inner)
        # Links may lead in a circle.
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(inner, name) for name in sorted(names) if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__")) or name.endswith("~")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, unpacked if it is compressed.

    Raises:
        DataError: it is no regular file, or cannot be read or unpacked, or Git LFS has not downloaded it.
    """
    check_regular(path)
    opener = OPENERS.get(path.suffix.lower())
    try:
        if opener is None:
            content = path.read_bytes()
        else:
            with opener(path) as stream:
                content = stream.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"data file {str(path)!r} cannot be read ({reason}).") from None
    if content.startswith(LFS_POINTER):
        raise DataError(f"data file {str(path)!r} is a pointer of Git LFS. Get its content with `git lfs pull`.")
    return content


def read_text(path: Path) -> str:
    """Return the text of a file, with `\\n` at the ends of its lines and without a byte-order mark.

    Raises:
        DataError: as `read_bytes`; or it is empty, or not UTF-8.
    """
    content = read_bytes(path)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"data file {str(path)!r} is not UTF-8 text (byte {error.start}). Convert it first.") from None
    # Every second byte of English in UTF-16 is NUL; in a text a few may stand by mistake.
    if text.count("\0") * 20 > len(text):
        raise DataError(f"data file {str(path)!r} is not UTF-8 text: many characters are NUL. Convert it first.")
    if not text.strip():
        raise DataError(f"data file {str(path)!r} is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_prose(path: Path) -> str:
    """Return the text of a file that is meant to be plain text.

    Raises:
        DataError: as `read_text`; or it is JSON, whose braces and keys are no text to learn from.
    """
    text = read_text(path)
    first = text.lstrip().partition("\n")[0]
    if first.startswith("{"):
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            return text
        raise DataError(
            f"data file {str(path)!r} holds JSON objects, not plain text. Rename it to .jsonl, and its column of text "
            "is read."
        )
    return text
