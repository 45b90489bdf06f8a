"""How much a folder holds, and one clear error where nothing more fits."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysweep.errors import DiskFullError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def refuse_when_full(target: Path) -> Iterator[None]:
    """Say what it means for a sweep that a file or folder of it could not be written whole.

    Raises:
        DiskFullError: the system says that there is no space; safetensors passes that on as text.
    """
    try:
        yield
    except Exception as error:
        named = any(f"(os error {number})" in str(error) for number in FULL)
        if not named and getattr(error, "errno", None) not in FULL:
            raise
        raise DiskFullError(
            f"no space is left for {str(target)!r}. What was written before is whole: free some space "
            "('raysweep gc' finds checkpoints that nothing needs), then resume the sweep."
        ) from error


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; what is removed meanwhile counts nothing."""
    if not path.is_dir():
        return _size_of(path)
    return sum(_size_of(Path(inner, name)) for inner, _, names in os.walk(path) for name in names)


def _size_of(file: Path) -> int:
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0
