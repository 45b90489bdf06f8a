"""Print which packages of this Python's environment have another version than constraints.txt says."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCK = Path(__file__).resolve().parent.parent / "constraints.txt"
OWN = {"raysweep", "pip"}  # the first is what is tested, the second comes with Python


def locked(text: str) -> dict[str, Version]:
    """Return the version of each package that a lock pins for the running Python."""
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    pins = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("=="))
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def public(version: Version | None) -> str:
    """Return a version without the name of its build: 2.13.0+cpu is 2.13.0."""
    return version.public if version else "-"


def main() -> None:
    wanted = locked(LOCK.read_text(encoding="utf-8"))
    installed = {canonicalize_name(one.metadata["Name"]): Version(one.version) for one in distributions()}
    rows = [
        (name, public(wanted.get(name)), public(version))
        for name, version in sorted(installed.items())
        if name not in OWN and public(wanted.get(name)) != public(version)
    ]
    print(f"{len(rows)} of {len(installed.keys() - OWN)} packages are not as in constraints.txt")
    for name, before, after in rows:
        print(f"  {name:<40} {before:>16} -> {after}")


if __name__ == "__main__":
    main()
