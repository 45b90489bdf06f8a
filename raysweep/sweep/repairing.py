"""Find the phases whose checkpoints are damaged or gone, and compare what they gave when they were run again."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from raysweep.records import atomic_folders as entries
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord
from raysweep.sweep.checkpoints import broken_parts, damaged_files, damaged_in, differences
from raysweep.sweep.wording import some
from raysweep.trial.store.names import OUTCOME, PROGRESS


@dataclass(frozen=True, kw_only=True)
class LostPhase:
    """A recorded phase without its checkpoint."""

    record: PhaseRecord
    store: Path
    why: str


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A phase that was run again."""

    trial: int
    phase: str
    key: str
    why: str
    """What was wrong with its checkpoint."""
    differs: list[str]
    """Fields in which its outcome is not what was recorded; empty where it is the same, bit for bit."""


def lost_phases(folder: SweepFolder) -> list[LostPhase]:
    """Return every recorded phase whose entry is damaged or gone, each once, in the order of the records.

    Tensors that were removed to free their space are not lost.
    """
    found: dict[Path, LostPhase] = {}
    whole: set[Path] = set()
    for record in folder.phases():
        store = folder.store_of(record.trial)
        entry = store / record.key
        if entry in found or entry in whole:
            continue
        broken = list(damaged_in(entry)) if entry.is_dir() else ["it is gone"]
        if broken:
            found[entry] = LostPhase(record=record, store=store, why=some(broken))
        else:
            whole.add(entry)
    return list(found.values())


def lost_of_result(folder: SweepFolder, trial: int) -> list[LostPhase]:
    """Return the phase that is the result of an ended trial, if its state cannot be restored from the store."""
    ended = folder.trials().get(trial)
    records = {record.key: record for record in folder.phases() if record.trial == trial}
    own = [key for key in (ended.phases if ended else ()) if key in records]
    if not own or ended is None:
        return []
    key, store = ended.halted["kept"] if ended.halted else own[-1], folder.store_of(trial)
    broken = list(broken_parts(store, key))
    return [LostPhase(record=records[key], store=store, why=some(broken))] if broken else []


def set_aside(folder: SweepFolder, lost: Collection[LostPhase]) -> None:
    """Set the damaged entries of lost phases aside, and with them all that is damaged and that no record knows.

    Nothing is lost by the latter: whoever needs such a phase runs it, or goes on from an earlier checkpoint in it.
    """
    known = {folder.store_of(record.trial) / record.key for record in folder.phases(stop="curve")}
    for each in lost:
        _rename(each.store / each.record.key)
    for store in sorted({entry.parent for entry in known} | {folder.store}):
        for damaged in damaged_files(store):
            entry = (store / damaged).parent
            if entry not in known:
                _rename(entry)


def _rename(entry: Path) -> None:
    if list(damaged_in(entry, PROGRESS if entry.parent.suffix == ".partial" else OUTCOME)):
        aside = entry.with_name(f"{entry.name}.damaged")
        # An earlier one makes room: a folder cannot be renamed onto one that is not empty.
        entries.remove(aside)
        if entry.is_dir():
            os.rename(entry, aside)


def compared(lost: Collection[LostPhase]) -> list[Repaired]:
    """Return of each phase that was run again whether its outcome is what was recorded."""
    return [
        Repaired(
            trial=each.record.trial, phase=each.record.phase, key=each.record.key, why=each.why,
            differs=differences(each.record, each.store),
        )
        for each in lost
    ]  # fmt: skip
