"""Check what must hold of every checkpoint of a sweep. All of them are read, which takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raysweep.sweep.checkpoints import damaged_files, differences
from raysweep.sweep.evidence import Evidence
from raysweep.sweep.wording import some


def _checkpoints_whole(evidence: Evidence) -> Iterator[str]:
    stores = {evidence.folder.store_of(trial) for trial in evidence.proposals}
    for store in sorted(stores):
        broken = list(damaged_files(store))
        if broken:
            yield f"{store} holds what was not written there: {some(broken)}; 'raysweep repair' runs it again"
    for trial, phases in evidence.phases.items():
        store = evidence.folder.store_of(trial)
        gone = [phase.label for phase in phases if not (store / phase.key).is_dir()]
        if gone:
            yield f"trial {trial} has no checkpoints of {some(gone)}; 'raysweep repair' runs them again"


def _records_as_stored(evidence: Evidence) -> Iterator[str]:
    for record in evidence.folder.phases():
        other = differences(record, evidence.folder.store_of(record.trial))
        if other:
            yield f"trial {record.trial}, {record.phase}: {some(other)} is not what its checkpoint says"


DEEP: dict[str, Callable[[Evidence], Iterator[str]]] = {
    "every checkpoint is as it was written": _checkpoints_whole,
    "every phase record is that of its checkpoint": _records_as_stored,
}
"""Invariants that read all checkpoints."""
