"""The phase store: outcomes of phases by key, so that trials share what they have in common.

    <key>/outcome.json       record and decision
    <key>/tensors.safetensors   all weights and optimizer state, after training phases only
    <key>/slices.safetensors    after prune, the weights it removed; after grow, the weights it wrote
    <key>.partial/           the newest checkpoint inside a running training phase
    <key>.lock               held by whoever is running the phase

A state after prune or grow is the last tensors before it, and each decision and its slices since.
Entries appear by one rename: an entry is whole, or it is not there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

TENSORS = "tensors.safetensors"
SLICES = "slices.safetensors"


@dataclass(frozen=True, kw_only=True)
class Outcome:
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


class PhaseStore:
    """Reads and writes outcomes under one folder; used by rank 0 to write, by all ranks to read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, key: str) -> bool:
        return (self.folder / key / "outcome.json").is_file()

    def find(self, key: str) -> Outcome | None:
        path = self.folder / key / "outcome.json"
        if not path.is_file():
            return None
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))

    def save(
        self,
        key: str,
        outcome: Outcome,
        tensors: Mapping[str, torch.Tensor] | None,
        slices: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write an entry; a training phase gives all tensors, prune and grow the slices that they changed."""
        with self._appearing(self.folder / key) as folder:
            for name, content in ((TENSORS, tensors), (SLICES, slices)):
                if content is not None:
                    save_file(_contiguous(content), folder / name)
            (folder / "outcome.json").write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        shutil.rmtree(self._partial(key), ignore_errors=True)

    def tensors(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return the tensors of an entry, None where the phase changed none."""
        path = self.folder / key / TENSORS
        return load_file(path) if path.is_file() else None

    def slices(self, key: str) -> dict[str, torch.Tensor]:
        """Return what a prune removed or a grow wrote."""
        path = self.folder / key / SLICES
        assert path.is_file(), f"phase {key} has no {SLICES}; an older raysweep wrote it: start a new sweep"
        return load_file(path)

    def save_partial(self, key: str, partial: Partial) -> None:
        """Replace the checkpoint inside a running phase."""
        target = self._partial(key) / f"step-{partial.step:09d}"
        previous = [folder for folder in self._partial(key).glob("step-*") if folder != target]
        self._partial(key).mkdir(exist_ok=True)
        with self._appearing(target) as folder:
            save_file(_contiguous(partial.tensors), folder / TENSORS)
            progress = {
                name: getattr(partial, name)
                for name in ("step", "curve", "structure", "trajectory", "evaluations", "flops")
            }
            (folder / "progress.json").write_text(json.dumps(progress))
        for old in previous:
            shutil.rmtree(old, ignore_errors=True)

    def find_partial(self, key: str) -> Partial | None:
        """Return the newest checkpoint inside a phase."""
        folders = sorted(self._partial(key).glob("step-*"))
        if not folders:
            return None
        progress = json.loads((folders[-1] / "progress.json").read_text(encoding="utf-8"))
        return Partial(**progress, tensors=load_file(folders[-1] / TENSORS))

    def lease(self, key: str) -> FileLock:
        """Return the lock under which a phase is run; the system frees it when its holder dies."""
        return FileLock(self.folder / f"{key}.lock")

    def _partial(self, key: str) -> Path:
        return self.folder / f"{key}.partial"

    @contextmanager
    def _appearing(self, target: Path) -> Iterator[Path]:
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".part-"))
        try:
            yield temporary
            os.chmod(temporary, 0o755)  # mkdtemp makes it private; a sweep's folder is read by others
            if not target.exists():  # a killed attempt may have got this far: equal by construction
                os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
