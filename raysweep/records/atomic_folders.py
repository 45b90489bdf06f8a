"""Folders that appear whole: written beside their place, with a checksum of each file, then renamed into it.

A folder of a killed writer is never read, because it was never renamed. A file that a crashed machine did not get to
the disk is found by its checksum, so no writer here waits for the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from raysweep.records.disk import refuse_when_full

MANIFEST = "manifest.json"
UNFINISHED = ".part-"
"""How the name of a folder begins that is being written, or that a killed writer left."""


class DamagedError(Exception):
    """A folder does not hold what was written into it. The phase store catches it and runs the phase again."""


@dataclass(frozen=True, kw_only=True)
class FolderManifest:
    """The contents of a folder, written into it as its last file."""

    sha256: dict[str, str]
    """Checksum of each file by its name."""
    collected: list[str] = field(default_factory=list)
    """Files that were removed on purpose, to free their space."""


@contextmanager
def appearing(target: Path, within: Path) -> Iterator[Path]:
    """Yield a temporary folder under `within` that becomes `target` by one rename.

    A target that is complete stays as it is: another writer was faster, and it wrote the same content.

    Raises:
        DiskFullError: there is no space left; nothing has changed.
    """
    with refuse_when_full(target), renamed_into_place(target, within, rename=_rename_unless_complete) as temporary:
        yield temporary
        _write(temporary, FolderManifest(sha256={path.name: _digest(path) for path in sorted(temporary.iterdir())}))


@contextmanager
def renamed_into_place(
    target: Path,
    within: Path,
    *,
    translate: AbstractContextManager[None] | None = None,
    rename: Callable[[Path, Path], None] = os.rename,
) -> Iterator[Path]:
    """Hand out an empty folder under `within` that becomes `target` at the end; if the block raises, nothing is left.

    Args:
        translate: turns the OSError of a folder that cannot be made into an error of the caller's.
        rename: puts the finished folder in place; by default a target that is there is replaced only if it is empty.
    """
    # `within` is on the file system of the target: a rename is atomic within one file system only.
    with translate or nullcontext():
        # Not by tempfile, whose folders are private: others read sweeps and exports, as far as the umask lets them.
        temporary = within / f"{UNFINISHED}{secrets.token_hex(8)}"
        temporary.mkdir()
    try:
        yield temporary
        rename(temporary, target)
    finally:
        # After the rename there is nothing left to remove.
        shutil.rmtree(temporary, ignore_errors=True)


def manifest(folder: Path) -> FolderManifest:
    """Return the manifest of a folder.

    Raises:
        DamagedError: it is missing or cannot be read.
    """
    try:
        found = FolderManifest(**json.loads((folder / MANIFEST).read_bytes()))
        if not (isinstance(found.sha256, dict) and isinstance(found.collected, list)):
            raise TypeError("it holds something else")
        return found
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({error})") from error


def check(folder: Path, name: str) -> None:
    """Check that a file is as it was written.

    Raises:
        DamagedError: its checksum differs, or it is missing.
    """
    expected = manifest(folder).sha256.get(name)
    try:
        found = _digest(folder / name)
    except OSError as error:
        raise DamagedError(f"{name} cannot be read ({error.strerror})") from error
    if found != expected:
        raise DamagedError(f"{name} is not what was written: its checksum differs")


def is_complete(folder: Path) -> bool:
    """Return whether a folder has all its files, without reading them."""
    try:
        found = manifest(folder)
    except DamagedError:
        return False
    return not found.collected and all((folder / name).is_file() for name in found.sha256)


def collect(folder: Path, name: str) -> None:
    """Remove a file for good, and say so in the manifest."""
    found = manifest(folder)
    # The manifest is written first: killed in between, the folder holds a file too many, which harms nothing. The other
    # order would leave a folder that looks damaged.
    if name not in found.collected:
        with refuse_when_full(folder):
            _write(folder, FolderManifest(sha256=found.sha256, collected=[*found.collected, name]))
    (folder / name).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder."""
    # Renamed first: deleting takes time, and killed in the middle it would leave an entry with some of its files.
    doomed = folder.with_name(f"{UNFINISHED}{os.urandom(4).hex()}")
    try:
        os.rename(folder, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary folders that killed writers left in a folder."""
    return sorted(folder.glob(f"{UNFINISHED}*"))


def sweep_up(store: Path) -> None:
    """Remove the unfinished folders of killed writers from a sweep's store; no other process may be writing there."""
    for place in (store, *store.glob("trial-*")):  # a sweep without sharing has a store for each trial
        for leftover in leftovers(place):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, content: FolderManifest) -> None:
    # Replaced by a rename, because readers in other processes look at a manifest while it is being changed.
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(asdict(content), sort_keys=True), encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)


def _rename_unless_complete(temporary: Path, target: Path) -> None:
    if is_complete(target):
        return
    # A damaged or collected target has to go first: no rename replaces a folder that holds files.
    remove(target)
    try:
        os.rename(temporary, target)
    except OSError as error:
        # A target that has appeared since was written by a faster writer, with the same content.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
