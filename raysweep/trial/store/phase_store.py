"""The phase store: outcomes of phases by key, so that trials share what they have in common.

    <key>/outcome.json       record and decision
    <key>/tensors.safetensors   all weights and optimizer state, after training phases only
    <key>/slices.safetensors    after prune, the weights it removed; after grow, the weights it wrote
    <key>/manifest.json      a checksum of each file, and which ones were collected to free space
    <key>.partial/           the newest checkpoint inside a running training phase
    <key>.damaged/           what once was an entry, set aside
    <key>.lock               held by whoever is running the phase

A state after prune or grow is the last tensors before it, and each decision and its slices since.
Entries appear by one rename: an entry is whole, or it is not there. One that is not what was written any more is set
aside, and its phase is run again by whoever needs it; so is a phase whose tensors were collected.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from raysweep.records import atomic_folders as entries
from raysweep.records.atomic_folders import DamagedError

OUTCOME = "outcome.json"
PROGRESS = "progress.json"
TENSORS = "tensors.safetensors"
SLICES = "slices.safetensors"


@dataclass(frozen=True, kw_only=True)
class PhaseOutcome:
    """What a phase left behind, tensors aside."""

    trial: int
    """The trial that ran it."""
    record: dict[str, Any]
    reference_entropy: list[list[float | None]] | None
    """Entropy before the last prune; None for heads that were absent then."""
    history: list[str]
    """Keys of the phases up to and including this one."""


@dataclass(frozen=True, kw_only=True)
class Partial:
    """A checkpoint inside a training phase."""

    step: int
    curve: list[dict[str, float]]
    structure: dict[str, Any]
    """What events inside a continuous phase have changed so far."""
    tensors: dict[str, torch.Tensor]
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    flops: float = 0.0


def ignore_warning(text: str) -> None:
    """Take no notice."""


class PhaseStore:
    """Reads and writes outcomes under one folder; used by rank 0 to write, by all ranks to read.

    Args:
        warn: told of each entry that had to be set aside.

    Raises, from whatever writes:
        DiskFullError: there is no space left; the store is as it was before.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = ignore_warning) -> None:
        self.folder = folder
        self.warn = warn
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, key: str) -> PhaseOutcome | None:
        """Return a phase's outcome; None where there is none, or only a damaged one, which is set aside."""
        folder = self.folder / key
        if not folder.is_dir():
            return None
        if not self._as_written(folder, [OUTCOME]):
            return None
        return PhaseOutcome(**json.loads((folder / OUTCOME).read_text(encoding="utf-8")))

    def missing(self, key: str) -> str | None:
        """Return the last phase that must be run again before the state after a phase can be restored; None: it can.

        Every file that makes up the state is checked.
        """
        outcome = self.find(key)
        if outcome is None:
            return key
        trained = False  # whether a later phase's tensors are what the state is made of
        for done in reversed(outcome.history):
            if self.find(done) is None:
                return done
            held = entries.manifest(self.folder / done)
            wanted = [name for name in (SLICES, *(() if trained else (TENSORS,))) if name in held.sha256]
            if any(name in held.collected for name in wanted) or not self._as_written(self.folder / done, wanted):
                return done
            trained = trained or TENSORS in wanted
        return None

    def save(
        self,
        key: str,
        outcome: PhaseOutcome,
        tensors: Mapping[str, torch.Tensor] | None,
        slices: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write an entry; a training phase gives all tensors, prune and grow the slices that they changed.

        An entry that is there stays, unless something of it is missing.
        """
        with entries.appearing(self.folder / key, self.folder) as folder:
            for name, content in ((TENSORS, tensors), (SLICES, slices)):
                if content is not None:
                    save_file(_contiguous(content), folder / name)
            (folder / OUTCOME).write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        shutil.rmtree(self._partial(key), ignore_errors=True)

    def tensors(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return the tensors of an entry that `missing` found whole, None where the phase changed none."""
        folder = self.folder / key
        if not folder.is_dir() or TENSORS not in entries.manifest(folder).sha256:
            return None
        return load_file(folder / TENSORS)

    def slices(self, key: str) -> dict[str, torch.Tensor]:
        """Return what a prune removed or a grow wrote."""
        path = self.folder / key / SLICES
        assert path.is_file(), f"phase {key} has no {SLICES}"
        return load_file(path)

    def save_partial(self, key: str, partial: Partial) -> None:
        """Replace the checkpoint inside a running phase."""
        target = self._partial(key) / f"step-{partial.step:09d}"
        previous = [folder for folder in self._partial(key).glob("step-*") if folder != target]
        with entries.appearing(target, self.folder) as folder:
            save_file(_contiguous(partial.tensors), folder / TENSORS)
            names = ("step", "curve", "structure", "trajectory", "evaluations", "flops")
            progress = {name: getattr(partial, name) for name in names}
            (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            self._partial(key).mkdir(exist_ok=True)
        for old in previous:
            entries.remove(old)

    def find_partial(self, key: str) -> Partial | None:
        """Return the newest whole checkpoint inside a phase."""
        for folder in sorted(self._partial(key).glob("step-*"), reverse=True):
            try:
                for name in (PROGRESS, TENSORS):
                    entries.check(folder, name)
            except DamagedError as error:
                entries.remove(folder)
                self.warn(f"{folder}: {error}. It is passed over.")
                continue
            progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
            return Partial(**progress, tensors=load_file(folder / TENSORS))
        return None

    def lease(self, key: str) -> FileLock:
        """Return the lock under which a phase is run; the system frees it when its holder dies."""
        return FileLock(self.folder / f"{key}.lock")

    def _partial(self, key: str) -> Path:
        return self.folder / f"{key}.partial"

    def _as_written(self, folder: Path, names: Sequence[str]) -> bool:
        """Check files of an entry; one that is damaged is set aside whole."""
        try:
            for name in names:
                entries.check(folder, name)
        except DamagedError as error:
            self._set_aside(folder, error)
            return False
        return True

    def _set_aside(self, folder: Path, error: DamagedError) -> None:
        aside = folder.with_name(f"{folder.name}.damaged")
        entries.remove(aside)
        try:
            os.rename(folder, aside)
        except FileNotFoundError:
            return  # another reader was first
        self.warn(f"{folder}: {error}. It is set aside, and its phase run again.")


def sweep_up(folder: Path) -> None:
    """Remove what killed writers left in a sweep's store; nobody else may be writing there."""
    for place in (folder, *folder.glob("trial-*")):
        for leftover in entries.leftovers(place):
            shutil.rmtree(leftover, ignore_errors=True)


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
