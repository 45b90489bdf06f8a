"""Say who holds the locks of a sweep, and remove those of the dead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raysweep.errors import ArchiveError
from raysweep.records.folder import SweepFolder
from raysweep.records.locks import Holder, Lock


@dataclass(frozen=True, kw_only=True)
class Unlocked:
    """A lock that was removed."""

    lock: str
    """`sweep`, or the phase whose lease it was, by its key."""
    holder: Holder


def unlock(folder: SweepFolder, *, force: bool = False) -> list[Unlocked]:
    """Remove the lock of a sweep, and the leases of phases in its store, whose owners have died.

    Args:
        force: remove those of the living, too.

    Raises:
        ArchiveError: the owner of the sweep's lock is alive, as far as can be told from here; nothing was removed.
    """
    held = folder.holder()
    if held is not None and not held.dead and not force:
        raise ArchiveError(
            f"sweep {folder.name!r} is held by {held}, and that is alive as far as can be told from here. Stop it with "
            f"'raysweep stop {folder.name}'; --force takes its lock away all the same: only where you know it is gone."
        )
    found = []
    for name, path in _locks(folder):
        lock = Lock(path)
        holder = lock.holder(exactly=True)
        if holder is not None and (holder.dead or force) and lock.remove(holder):
            found.append(Unlocked(lock=name, holder=holder))
    return found


def _locks(folder: SweepFolder) -> Iterator[tuple[str, Path]]:
    yield "sweep", folder.path / ".lock"
    for store in (folder.store, *sorted(folder.store.glob("trial-*"))):
        yield from ((path.stem, path) for path in sorted(store.glob("*.lock")))
