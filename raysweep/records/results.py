"""The results folder: list its sweeps, and name and make the folder of a new one."""

from __future__ import annotations

import re
from pathlib import Path

from raysweep.errors import ArchiveError

# A plain folder name: no separator and no leading dot, so that a sweep can never lie outside the results folder.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def list_sweeps(results: Path) -> list[str]:
    """Return the names of all sweeps in a results folder, oldest first."""
    jobs = [path for path in results.glob("*/job.yaml") if path.is_file()]
    # Two sweeps can be made in the same tick of a coarse file clock; the path makes the order definite.
    return [path.parent.name for path in sorted(jobs, key=lambda path: (path.stat().st_mtime_ns, path))]


def is_sweep(results: Path, name: str) -> bool:
    """Return whether a results folder holds a sweep of this name."""
    return NAME.fullmatch(name) is not None and (results / name / "job.yaml").is_file()


def check_new_sweep(results: Path, name: str | None) -> None:
    """Check that a new sweep can be given a name; None stands for a numbered one, which is always free.

    Raises:
        ArchiveError: the name is unusable or taken.
    """
    if name is not None and not NAME.fullmatch(name):
        raise ArchiveError(f"--name {name!r}: use letters, digits, '-', '_' and '.'.")
    if name is not None and (results / name).exists():
        raise _taken(name)


def make_folder(results: Path, name: str | None, job: str, *, private: bool = False) -> Path:
    """Make the folder of a new sweep: `name`, or `<job>-<number>` with the lowest free number.

    Args:
        private: nobody but its owner can look into it, whatever the umask lets others do.

    Raises:
        ArchiveError: the name is taken.
        OSError: the results folder cannot be written.
    """
    results.mkdir(parents=True, exist_ok=True)
    mode = 0o700 if private else 0o777
    if name is None:
        return _make_numbered(results, job, mode)
    try:
        (results / name).mkdir(mode)
    except FileExistsError:
        raise _taken(name) from None
    return results / name


def _make_numbered(results: Path, job: str, mode: int) -> Path:
    number = 1
    while True:
        folder = results / f"{job}-{number}"
        try:
            # mkdir both tests and takes the number in one step: two sweeps that start at once cannot get the same one.
            folder.mkdir(mode)
            return folder
        except FileExistsError:
            number += 1


def _taken(name: str) -> ArchiveError:
    way = f"Continue it with 'raysweep resume {name}', or choose another --name."
    return ArchiveError(f"sweep {name!r} exists already. {way}")
