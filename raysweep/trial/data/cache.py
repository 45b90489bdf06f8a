"""Keep prepared arrays in a cache folder, built once under a lock.

Several ranks of a node, and several sweeps, may ask for one entry at the same time. The first builds it while the
others wait; a builder that is killed leaves no entry.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from raysweep.contracts import Examples


def keep_arrays(folder: Path, build: Callable[[], dict[str, Examples]], tokenizer: Any) -> None:
    """Build the arrays of a cache entry and store them with their tokenizer, unless the entry is there already.

    Args:
        folder: the entry; its name is a hash of everything that determines its content.
    """
    # Whether the entry is there is looked up under the lock: a process that waited for it finds the entry built.
    with FileLock(lock_path(folder)):
        if not folder.exists():
            _build_entry(folder, build(), tokenizer)


def _build_entry(folder: Path, arrays: dict[str, Examples], tokenizer: Any) -> None:
    # Written beside its place and renamed at the end: an entry that is there is whole, wherever a builder was killed.
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    for name, array in arrays.items():
        np.save(partial / f"{name}.npy", array)
    (partial / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    about = {"tokens": {name: array.size for name, array in arrays.items()}, "vocab_size": tokenizer.get_vocab_size()}
    (partial / "about.json").write_text(json.dumps(about))
    os.rename(partial, folder)


def cache_folder() -> Path:
    """Return `$RAYSWEEP_CACHE`, by default `~/.cache/raysweep`."""
    return Path(os.environ.get("RAYSWEEP_CACHE") or Path.home() / ".cache" / "raysweep")


def lock_path(path: Path) -> Path:
    """Return the lock file of a cache entry, in a folder that exists afterwards."""
    # Beside the entry and not inside it: the entry must not exist before it is whole.
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".lock")
