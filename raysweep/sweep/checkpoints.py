"""Whether the phase store holds what a trial's result is restored from. Looks only, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from raysweep.records import atomic_folders as entries
from raysweep.records.atomic_folders import DamagedError

OUTCOME, TENSORS, SLICES = "outcome.json", "tensors.safetensors", "slices.safetensors"


def broken_parts(store: Path, key: str) -> Iterator[str]:
    """Name what is missing or damaged: the outcomes up to a phase, what changed heads, the last tensors."""
    try:
        entries.check(store / key, OUTCOME)
    except DamagedError:
        yield f"{key}/{OUTCOME}"
        return
    trained = False  # whether a later phase's tensors are what the state is made of
    for phase in reversed(json.loads((store / key / OUTCOME).read_bytes())["history"]):
        try:
            held = entries.manifest(store / phase)
        except DamagedError:
            yield phase
            continue
        wanted = (OUTCOME, SLICES) if trained else (OUTCOME, SLICES, TENSORS)
        for name in wanted:
            if name in held.sha256 and not _is_whole(store / phase, name):
                yield f"{phase}/{name}"
        trained = trained or TENSORS in held.sha256


def _is_whole(entry: Path, name: str) -> bool:
    try:
        entries.check(entry, name)
    except DamagedError:
        return False
    return True
