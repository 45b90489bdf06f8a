"""Whether the phase store holds what a trial's result is restored from. Looks at files only, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysweep.plan import TRAINING_PHASES

OUTCOME, TENSORS, SLICES = "outcome.json", "tensors.safetensors", "slices.safetensors"


def broken_parts(store: Path, key: str) -> Iterator[str]:
    """Name what is missing or cut short: the outcome, the last tensors before it, and what changed heads since."""
    final = _outcome(store / key)
    if final is None:
        yield f"{key}/{OUTCOME}"
        return
    outcomes = {phase: _outcome(store / phase) for phase in final["history"]}
    records = {phase: outcome["record"] for phase, outcome in outcomes.items() if outcome}
    trained = [phase for phase, record in records.items() if record["phase"] in TRAINING_PHASES and record["steps"]]
    for phase in outcomes:
        if phase not in records:
            yield f"{phase}/{OUTCOME}"
        elif trained[-1:] == [phase] and not _whole(store / phase / TENSORS):
            yield f"{phase}/{TENSORS}"
        elif records[phase]["phase"] in ("prune", "grow") and not _whole(store / phase / SLICES):
            yield f"{phase}/{SLICES}"


def _outcome(entry: Path) -> dict[str, Any] | None:
    try:
        return json.loads((entry / OUTCOME).read_bytes())
    except (OSError, ValueError):
        return None


def _whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: 8 bytes of length, the header, the data."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        data = max((part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"), default=0)
        return path.stat().st_size == 8 + length + data
    except (OSError, ValueError, KeyError, TypeError):
        return False
