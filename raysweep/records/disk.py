"""The size of a folder, files that are replaced whole, and one clear error where the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysweep.errors import DiskFullError

# A full disk, and a user's full quota on a disk that has room.
FULL = (errno.ENOSPC, errno.EDQUOT)
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, *FULL)
"""Errors of a folder that cannot be written or read, or has no room."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the file that Git LFS puts in the place of one that was not downloaded."""


@contextmanager
def refuse_when_full(target: Path) -> Iterator[None]:
    """Turn the system's error of a full disk into one that says what it means for the sweep and what to do.

    Args:
        target: the file or folder that is being written.

    Raises:
        DiskFullError: no space is left.
    """
    try:
        yield
    except Exception as error:
        # safetensors raises an error of its own, in which the system's error number is a part of the text.
        named = any(f"(os error {number})" in str(error) for number in FULL)
        if not named and getattr(error, "errno", None) not in FULL:
            raise
        raise DiskFullError(
            f"no space is left for {str(target)!r}. What was written before is whole: free some space "
            "('raysweep gc' finds checkpoints that nothing needs), then resume the sweep."
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        DiskFullError: there is no room for it; the file is as it was.
    """
    # By a rename, so that a reader in another process never sees half a file, nor a kill leaves one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with refuse_when_full(path):
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; a file that is removed meanwhile counts nothing."""
    if not path.is_dir():
        return _size_of(path)
    return sum(_size_of(Path(inner, name)) for inner, _, names in os.walk(path) for name in names)


def _size_of(file: Path) -> int:
    try:
        # lstat: a link counts itself, not the file that it points to, which may lie outside the folder.
        return file.lstat().st_size
    except FileNotFoundError:
        return 0
