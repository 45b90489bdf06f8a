"""The phase store: outcomes of phases by key, so that trials share the phases that they have in common.

    <key>/outcome.json          record and decision
    <key>/tensors.safetensors   all weights, after training phases only
    <key>/moments.safetensors   the optimizer's state there, which only a further training phase needs
    <key>/slices.safetensors    after a prune, the weights it removed; after a grow, the weights it wrote
    <key>/manifest.json         a checksum of each file, and which files were removed to free space
    <key>.partial/              the newest checkpoint inside a running training phase
    <key>.damaged/              an entry whose checksums no longer fit, set aside
    <key>.lock                  held by the worker that is running the phase

The state after a prune or grow consists of the newest tensors before it, and of each decision and its slices since.
An entry appears by one rename: it is whole, or it is not there. A damaged entry is set aside, and the next trial that
needs its phase runs it again; so is a phase whose tensors were removed.
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
from safetensors.torch import load_file, save_file

from raysweep.records import atomic_folders as entries
from raysweep.records.atomic_folders import DamagedError
from raysweep.records.locks import Lock
from raysweep.trial.store.names import MOMENTS, OUTCOME, PROGRESS, SLICES, TENSORS

OPTIMIZER = "optimizer/"
"""How the names of the tensors begin that make up the optimizer's state; see `TrialState.tensors`."""


@dataclass(frozen=True, kw_only=True)
class PhaseOutcome:
    """The outcome of a phase without its tensors."""

    trial: int
    """The trial that ran it."""
    record: dict[str, Any]
    reference_entropy: list[list[float | None]] | None
    """Entropy of each head just before the last prune, None at heads that were absent then."""
    history: list[str]
    """Keys of the phases up to and including this one, in order."""


@dataclass(frozen=True, kw_only=True)
class Partial:
    """A checkpoint inside a training phase."""

    step: int
    """Finished steps."""
    curve: list[dict[str, float]]
    structure: dict[str, Any]
    """What events inside a continuous phase have changed so far; see `Events.structure`."""
    tensors: dict[str, torch.Tensor]
    """Weights, optimizer state, and whatever else the training resumes from."""
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    flops: float = 0.0
    """Training FLOPs so far."""


def ignore_warning(text: str) -> None:
    """Ignore a warning."""


class PhaseStore:
    """The outcomes of phases under one folder. All ranks read it, and rank 0 alone writes.

    Methods that write raise DiskFullError if no space is left; the store is then as it was before.

    Args:
        warn: called with a message about each entry that had to be set aside.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = ignore_warning) -> None:
        self.folder = folder
        self.warn = warn
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, key: str) -> PhaseOutcome | None:
        """Return the outcome of a phase, or None if it is not stored or damaged. A damaged entry is set aside."""
        # Only the small record is checked here; checking tensors too would read gigabytes for every reused phase.
        folder = self.folder / key
        if not folder.is_dir():
            return None
        if not self._as_written(folder, [OUTCOME]):
            return None
        return PhaseOutcome(**json.loads((folder / OUTCOME).read_text(encoding="utf-8")))

    def missing(self, key: str, *, moments: bool = True) -> str | None:
        """Return the last phase that must be run again before the state after `key` can be restored, or None.

        The checksum of every file that makes up the state is checked.

        Args:
            moments: whether the state is to be trained on, and so needs the optimizer's.
        """
        outcome = self.find(key)
        if outcome is None:
            return key
        # Going back from the newest phase: once tensors are found, older ones are not needed, but every decision and
        # its slices are.
        trained = False
        for done in reversed(outcome.history):
            if self.find(done) is None:
                return done
            # Files that were removed to free space are still listed in the manifest, with their names in `collected`.
            held = entries.manifest(self.folder / done)
            full = () if trained else (TENSORS, MOMENTS) if moments else (TENSORS,)
            wanted = [name for name in (SLICES, *full) if name in held.sha256]
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
        """Write an entry.

        An entry that is there stays, unless a file of it is missing: two writers of one key write the same.

        Args:
            tensors: all weights and optimizer state of a training phase; None for other phases.
            slices: the slices that a prune or grow changed; None for other phases.
        """
        with entries.appearing(self.folder / key, self.folder) as folder:
            weights = None if tensors is None else {n: t for n, t in tensors.items() if not n.startswith(OPTIMIZER)}
            moments = {name: tensor for name, tensor in (tensors or {}).items() if name.startswith(OPTIMIZER)}
            for name, content in ((TENSORS, weights), (MOMENTS, moments or None), (SLICES, slices)):
                if content is not None:
                    save_file(_contiguous(content), folder / name)
            (folder / OUTCOME).write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        # Only now: a kill before this line leaves the entry, and a checkpoint that is never read again.
        shutil.rmtree(self._partial(key), ignore_errors=True)

    def tensors(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return the tensors of an entry that `missing` has checked, without moments if those were removed.

        None if its phase stored none.
        """
        folder = self.folder / key
        if not folder.is_dir() or TENSORS not in (held := entries.manifest(folder)).sha256:
            return None
        moments = MOMENTS in held.sha256 and MOMENTS not in held.collected
        return load_file(folder / TENSORS) | (load_file(folder / MOMENTS) if moments else {})

    def slices(self, key: str) -> dict[str, torch.Tensor]:
        """Return the slices that a prune removed or a grow wrote."""
        path = self.folder / key / SLICES
        assert path.is_file(), f"phase {key} has no {SLICES}"
        return load_file(path)

    def save_partial(self, key: str, partial: Partial) -> None:
        """Write a checkpoint inside a running phase, and remove the one before."""
        # Digits are padded, so that names sort by step.
        target = self._partial(key) / f"step-{partial.step:09d}"
        previous = [folder for folder in self._partial(key).glob("step-*") if folder != target]
        with entries.appearing(target, self.folder) as folder:
            save_file(_contiguous(partial.tensors), folder / TENSORS)
            names = ("step", "curve", "structure", "trajectory", "evaluations", "flops")
            progress = {name: getattr(partial, name) for name in names}
            (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            self._partial(key).mkdir(exist_ok=True)
        # The old one goes after the new one is in place: whenever a kill comes, one whole checkpoint is there.
        for old in previous:
            entries.remove(old)

    def find_partial(self, key: str) -> Partial | None:
        """Return the newest undamaged checkpoint inside a phase, or None."""
        # Usually there is one; there are two if the writer was killed before it removed the old one.
        for folder in sorted(self._partial(key).glob("step-*"), reverse=True):
            # Read by checksum here, once, since the training goes on from these very tensors.
            try:
                for name in (PROGRESS, TENSORS):
                    entries.check(folder, name)
            except DamagedError as error:
                entries.remove(folder)
                self.warn(f"{folder}: {error}. This checkpoint is left out; an earlier one is used if there is one.")
                continue
            progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
            return Partial(**progress, tensors=load_file(folder / TENSORS))
        return None

    def lease(self, key: str) -> Lock:
        """Return the lock under which a phase is run, so that of several trials that need it one runs it."""
        return Lock(self.folder / f"{key}.lock")

    def _partial(self, key: str) -> Path:
        return self.folder / f"{key}.partial"

    def _as_written(self, folder: Path, names: Sequence[str]) -> bool:
        """Return whether files of an entry have their checksums; if one has not, the whole entry is set aside."""
        try:
            for name in names:
                entries.check(folder, name)
        except DamagedError as error:
            self._set_aside(folder, error)
            return False
        return True

    def _set_aside(self, folder: Path, error: DamagedError) -> None:
        """Rename a damaged entry, so that its phase is run again and the files can still be looked at."""
        aside = folder.with_name(f"{folder.name}.damaged")
        # An earlier damaged entry of the same key makes room: a folder cannot be renamed onto one that is not empty.
        entries.remove(aside)
        try:
            os.rename(folder, aside)
        except FileNotFoundError:
            # Another reader has set it aside already, and has warned.
            return
        self.warn(f"{folder}: {error}. It is set aside, and its phase run again.")


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors on the CPU without gaps, which safetensors asks for."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
