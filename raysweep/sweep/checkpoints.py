"""Check whether the phase store holds what a trial's result is restored from. Torch-free, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from raysweep.records import atomic_folders as entries
from raysweep.records.atomic_folders import DamagedError

# The names of trial/store/phase_store.py, which imports torch.
OUTCOME, TENSORS, SLICES = "outcome.json", "tensors.safetensors", "slices.safetensors"


def broken_parts(store: Path, key: str) -> Iterator[str]:
    """Yield each file that is missing or damaged, of those that make up the state after a phase.

    These are the outcomes of all phases up to it, the weights after the last training phase, and the slices that later
    phases changed.
    """
    try:
        entries.check(store / key, OUTCOME)
    except DamagedError:
        yield f"{key}/{OUTCOME}"
        return
    # From the last phase to the first: behind the last weights, no earlier ones are needed.
    trained = False
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
