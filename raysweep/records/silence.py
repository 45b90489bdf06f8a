"""Which lanes of a running sweep are silent, and since when: a file beside its records, for `raysweep status`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from raysweep.records.disk import replace_text

FILE = "silent.json"


def write_silent(folder: Path, since: Mapping[str, float]) -> None:
    """Note the silent lanes of a sweep, each with the time of its last sign of life in seconds since the epoch."""
    path = folder / FILE
    if not since:
        path.unlink(missing_ok=True)
        return
    replace_text(path, json.dumps(since))


def read_silent(folder: Path) -> dict[str, float]:
    """Return the silent lanes of a sweep, and for how many seconds each has been so."""
    try:
        since = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {lane: round(time.time() - at, 1) for lane, at in since.items()}
