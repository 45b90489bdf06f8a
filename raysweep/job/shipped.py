"""The jobs and search spaces that raysweep ships, by the names that people type: `jobs/quickstart.yaml`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

KINDS = ("jobs", "search_spaces")


def shipped_files(kind: str) -> dict[str, Path]:
    """Return the files of one kind that ship with raysweep, by name, in the order of their names."""
    # A name is looked up among these and never joined to a folder: `jobs/../x.yaml` reaches nothing.
    return {f"{kind}/{file.name}": file for file in sorted((_home() / kind).glob("*.yaml"))}


def find_shipped(name: str | Path) -> Path | None:
    """Return the shipped file of a name, None where raysweep ships none."""
    parts = Path(name).parts
    if len(parts) != 2 or parts[0] not in KINDS:
        return None
    return shipped_files(parts[0]).get("/".join(parts))


def find(name: str | Path) -> Path:
    """Return the file that a name means: the one here, else the shipped one; the name itself where there is neither."""
    here, shipped = Path(name), find_shipped(name)
    return here if shipped is None or here.exists() else shipped


def is_clone() -> bool:
    """Return whether raysweep runs from a clone of its repository."""
    return _home() != _package()


def _home() -> Path:
    """Return the folder that holds jobs/ and search_spaces/."""
    package = _package()
    # A wheel holds them inside the package (setup.py). In a clone, and so in an editable install of it, they lie beside
    # the package. Beside an installed package lies what others installed: that is looked at in a clone only.
    return package if (package / KINDS[0]).is_dir() else package.parent


def _package() -> Path:
    # As a Path: an installed raysweep is always unpacked, since Ray's workers and torch read their code from files.
    return Path(str(resources.files("raysweep")))
