"""Which lanes of a running sweep are silent, and since when: a file beside its records, for `raysweep status`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

FILE = "silent.json"


def write_silent(folder: Path, since: Mapping[str, float]) -> None:
    """Note the silent lanes of a sweep, each with the time of its last sign of life in seconds since the epoch."""
    path = folder / FILE
    if not since:
        path.unlink(missing_ok=True)
        return
    # By a rename, so that a reader never sees half a file.
    temporary = folder / f".{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(since), encoding="utf-8")
    os.replace(temporary, path)


def read_silent(folder: Path) -> dict[str, float]:
    """Return the silent lanes of a sweep, and for how many seconds each has been so."""
    try:
        since = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {lane: round(time.time() - at, 1) for lane, at in since.items()}
