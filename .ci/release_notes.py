#!/usr/bin/env python3
"""Print what CHANGELOG.md says of a version, and the commits since the tag before it: `.ci/release_notes.py 0.1.0`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def section(changelog: str, version: str) -> str:
    """Return the text under a version's heading.

    Raises:
        ValueError: there is none.
    """
    # What stands before the first heading, then a version and its text by turns.
    _, *parts = re.split(r"^## \[(.+?)\].*\n", changelog, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    if version not in sections or version == "Unreleased":
        released = ", ".join(name for name in sections if name != "Unreleased")
        raise ValueError(f"CHANGELOG.md has no version {version!r}; it has {released}.")
    return sections[version].strip()


def commits(version: str) -> str:
    """Return the subjects of the commits that came with a version, newest first; up to now if it has no tag yet."""
    tag = f"v{version}"
    end = tag if _git("tag", "--list", tag) else "HEAD"
    # All version tags on the way here, the nearest first; without its own.
    tags = _git("tag", "--list", "v[0-9]*", "--merged", end, "--sort=-creatordate").splitlines()
    last = next((one for one in tags if one != tag), None)
    title = f"Commits since {last}" if last else "All commits"
    return f"## {title}\n\n" + _git("log", "--format=- %s (%h)", f"{last}..{end}" if last else end)


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: .ci/release_notes.py VERSION, such as 0.1.0", file=sys.stderr)
        return 2
    try:
        text = section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), arguments[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(text, commits(arguments[0]), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
