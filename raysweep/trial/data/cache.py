"""Keep prepared arrays in a cache folder, built once under a lock.

Several ranks of a node, and several sweeps, may ask for one entry at the same time. The first builds it while the
others wait; a builder that is killed leaves no entry.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.contracts import Examples
from raysweep.errors import DataError
from raysweep.records.locks import Lock


def keep_arrays(folder: Path, build: Callable[[], dict[str, Examples]], tokenizer: Any) -> None:
    """Build the arrays of a cache entry and store them with their tokenizer, unless the entry is there already.

    Args:
        folder: the entry; its name is a hash of everything that determines its content.

    Raises:
        DataError: the cache cannot be written.
    """
    with refuse_unwritable():
        # An entry appears whole, by a rename: where it is there, no lock is needed, and the cache may be read-only.
        if folder.exists():
            return
        # Looked up again under the lock: a process that waited for it finds the entry built.
        with Lock(lock_path(folder)):
            if not folder.exists():
                _build_entry(folder, build(), tokenizer)


def _build_entry(folder: Path, arrays: dict[str, Examples], tokenizer: Any) -> None:
    # Written beside its place and renamed at the end: an entry that is there is whole, wherever a builder was killed.
    partial = _unfinished(folder)
    partial.mkdir()
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        sizes = {name: array.size for name, array in arrays.items()}
        (partial / "about.json").write_text(json.dumps({"tokens": sizes, "vocab_size": tokenizer.get_vocab_size()}))
        os.rename(partial, folder)
    except OSError:
        # Half an entry on a full disk would take the room that the next try needs.
        shutil.rmtree(partial, ignore_errors=True)
        raise


def keep_file(path: Path, build: Callable[[], bytes]) -> None:
    """Build a file of the cache and store it, unless it is there already."""
    with refuse_unwritable():
        if path.exists():
            return
        with Lock(lock_path(path)):
            if path.exists():
                return
            content, partial = build(), _unfinished(path)
            try:
                partial.write_bytes(content)
                os.replace(partial, path)
            except OSError:
                partial.unlink(missing_ok=True)
                raise


def _unfinished(path: Path) -> Path:
    """Return a new name beside an entry, for what becomes it."""
    # Not by tempfile, whose files nobody else can read: others may share the cache, as far as the umask lets them.
    return path.with_name(f".part-{secrets.token_hex(8)}")


@contextmanager
def refuse_unwritable() -> Iterator[None]:
    """Turn an error of the file system into one that names the cache and how to choose another.

    Raises:
        DataError: the cache cannot be written or read, or its disk is full.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the cache {str(cache_folder())!r} cannot be used ({reason}). Free room there, or set RAYSWEEP_CACHE to a "
            "folder that can be written."
        ) from error


def cache_folder() -> Path:
    """Return `$RAYSWEEP_CACHE`, by default `~/.cache/raysweep`.

    Raises:
        DataError: it is not set, and there is no home folder.
    """
    if chosen := os.environ.get("RAYSWEEP_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "raysweep"
    except RuntimeError:
        raise DataError("there is no home folder for the cache. Set RAYSWEEP_CACHE to a folder.") from None


def lock_path(path: Path) -> Path:
    """Return the lock file of a cache entry, in a folder that exists afterwards."""
    # Beside the entry and not inside it: the entry must not exist before it is whole.
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".lock")
