"""Write a shipped job, with the search spaces that it needs, to where they can be edited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raysweep.errors import UsageError, known_names_hint
from raysweep.job.paths import get_path
from raysweep.job.shipped import KINDS, find_shipped, shipped_files
from raysweep.job.spacefile import INCLUDE
from raysweep.job.yamlfile import load_mapping


def copy_shipped(name: str, to: Path) -> list[Path]:
    """Copy a shipped job or search space, and what it names, into `to/jobs` and `to/search_spaces`.

    Returns:
        The files that were written. One that it names and that is there already, unchanged, is not written again.

    Raises:
        UsageError: raysweep ships no such file, a file is in the way, or the folder cannot be written; a file that was
            there stays as it is.
    """
    source = find_shipped(name)
    if source is None:
        kind = next((kind for kind in KINDS if Path(name).parent.name == kind), KINDS[0])
        raise UsageError(f"copy: {known_names_hint(name, shipped_files(kind))}")
    wanted = {to / file.parent.name / file.name: file for file in [source, *_named_by(source)]}
    # Several jobs share a space: one that was copied with another job, and not edited since, is no obstacle.
    there = [target for target in wanted if target.exists()]
    taken = [target for target in there if wanted[target] == source or _differ(target, wanted[target])]
    if taken:
        files = ", ".join(map(str, taken))
        raise UsageError(f"already here, and never overwritten: {files}. Edit it, or copy with --to another folder.")
    new = [target for target in wanted if target not in there]
    written: list[Path] = []
    try:
        for target in new:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:  # x: refuse a file that somebody wrote a moment ago
                written.append(target)
                file.write(wanted[target].read_bytes())
    except OSError as error:
        for target in written:  # so that the same command works once what was in the way is gone
            target.unlink(missing_ok=True)
        raise UsageError(f"{error.filename!r} cannot be written: {error.strerror}.") from error
    return new


def _named_by(file: Path) -> Iterator[Path]:
    """Yield the shipped search spaces that a shipped file names, and those that they include."""
    content = load_mapping(file)
    included = content.get(INCLUDE, [])
    for name in [get_path(content, "search.space"), *([included] if isinstance(included, str) else included)]:
        if isinstance(name, str):
            # Looked up among what is shipped, never here: a space of the same name that somebody edited stays theirs.
            found = find_shipped(name) or find_shipped(Path(file.parent.name, name))
            assert found is not None  # a test holds this for every shipped file
            yield found
            yield from _named_by(found)


def _differ(one: Path, other: Path) -> bool:
    return not one.is_file() or one.read_bytes() != other.read_bytes()
