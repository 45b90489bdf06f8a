"""Check what the phase store holds: what a result is restored from, or all of it. Torch-free, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from raysweep.records import atomic_folders as entries
from raysweep.records.atomic_folders import DamagedError
from raysweep.records.schema import PhaseRecord
from raysweep.trial.store.names import OUTCOME, PROGRESS, SLICES, TENSORS


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


def damaged_files(store: Path) -> Iterator[str]:
    """Yield every file of a store that is not what was written, and every entry without its manifest."""
    for entry in sorted(store.glob("*")):
        # What was set aside is known to be damaged; what a killed writer left was never part of the store.
        if entry.is_dir() and not entry.name.startswith((entries.UNFINISHED, "trial-")) and entry.suffix != ".damaged":
            partial = entry.suffix == ".partial"
            for part in sorted(entry.glob("step-*")) if partial else [entry]:
                damaged = damaged_in(part, PROGRESS if partial else OUTCOME)
                yield from (str((part / name).relative_to(store)) for name in damaged)


def damaged_in(entry: Path, always: str = OUTCOME) -> Iterator[str]:
    """Yield the files of an entry that are missing or not what was written; its manifest if that cannot be read.

    Args:
        always: a file that the entry must have.
    """
    try:
        held = entries.manifest(entry)
    except DamagedError:
        yield entries.MANIFEST
        return
    names = dict.fromkeys([always, *held.sha256])
    yield from (name for name in names if name not in held.collected and not _is_whole(entry, name))


def stored_record(store: Path, key: str) -> PhaseRecord | None:
    """Return the record of a phase as the store has it; None where it has none, or a damaged one."""
    if not _is_whole(store / key, OUTCOME):
        return None
    outcome = json.loads((store / key / OUTCOME).read_bytes())
    # The trial that the phase belongs to; its record may come from another one, which ran it once more.
    return PhaseRecord.from_dict(outcome["record"] | {"trial": outcome["trial"]})


def differences(record: PhaseRecord, store: Path) -> list[str]:
    """Return the fields in which a phase record is not what its checkpoint says; none where there is no checkpoint."""
    stored = stored_record(store, record.key)
    if stored is None:
        return []
    mine, theirs = record.outcome(), stored.outcome()
    # As text, because NaN differs from itself.
    return [name for name in mine if repr(mine[name]) != repr(theirs[name])]


def _is_whole(entry: Path, name: str) -> bool:
    try:
        entries.check(entry, name)
    except DamagedError:
        return False
    return True
