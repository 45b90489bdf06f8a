"""Check the files of a model folder before anything is started: whole, of the network's shapes, and finite."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysweep.errors import ModelError
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import BESIDE, check_loads
from raysweep.records.disk import LFS_POINTER

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of all weights, and the list of the files that they are divided among."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Formats of safetensors for numbers that can be trained."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
READ_AT_ONCE = 2**24
"""Numbers that are looked at together: this bounds the memory."""

Shapes = dict[str, tuple[int, ...]]


def check_weights(model: ModelSpec, folder: Path) -> None:
    """Check that the weights of a folder can be loaded into the network of its config.json, and are finite.

    Raises:
        ModelError: a file is missing, damaged, no regular file, or holds other weights than the network has.
    """
    _check_regular(folder)
    shapes: Shapes = {}
    files = weight_files(folder)
    for path in files:
        shapes |= _shapes_in(path)
    check_loads(model, shapes)
    for path in files:
        _check_finite(path)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a folder, of which each is there.

    Raises:
        ModelError: there is none, one is missing, or their list is damaged.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        what = f" ({pickles[0]} is a pickle, which is not read: it could run code)" if pickles else ""
        raise ModelError(
            f"model folder {str(folder)!r} holds no weights: none of {WHOLE}, {INDEX}{what}. Save it with "
            "save_pretrained()."
        )
    listed = _listed(folder / INDEX)
    for name in dict.fromkeys(listed.values()):
        # A name with folders could lead out of the model's.
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{str(folder / INDEX)!r} lists {name!r}, which is not there. Download the model again.")
    files = [folder / name for name in sorted(set(listed.values()))]
    held = {name: path.name for path in files for name in _shapes_in(path)}
    for name, file in listed.items():
        if held.get(name) != file:
            raise ModelError(f"{str(folder / file)!r} lacks {name!r}, which {INDEX} says it holds. Download it again.")
    return files


def _listed(path: Path) -> dict[str, str]:
    """Return the file of each weight, as the list of a model's files says."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        assert found and all(isinstance(text, str) for entry in found.items() for text in entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        raise ModelError(f"{str(path)!r} is no list of weights (weight_map). Download the model again.") from None
    return dict(found)


def _check_regular(folder: Path) -> None:
    """Check that a folder holds regular files: the reader of a FIFO would wait for ever.

    Raises:
        ModelError: it holds something else, or a link that leads nowhere.
    """
    for path in sorted(folder.iterdir()):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise ModelError(f"model file {str(path)!r} cannot be read ({error.strerror}).") from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ModelError(f"model file {str(path)!r} is neither a regular file nor a folder. Remove it.")


def _shapes_in(path: Path) -> Shapes:
    """Return the shape of each weight of a file, from its header.

    Raises:
        ModelError: the file is damaged, or a weight is stored in whole numbers, as quantised ones are.
    """
    shapes: Shapes = {}
    with _opened(path) as tensors:
        for name in tensors.keys():
            entry = tensors.get_slice(name)
            shapes[name] = tuple(entry.get_shape())
            if name.endswith(".weight") and entry.get_dtype() not in FLOATS:
                raise ModelError(
                    f"model file {str(path)!r}: {name!r} is stored as {entry.get_dtype()}, as quantised weights are, "
                    f"not as one of {', '.join(FLOATS)}. Name the model that is not quantised."
                )
    return shapes


def _check_finite(path: Path) -> None:
    """Check that a file holds numbers alone.

    Raises:
        ModelError: one is NaN or infinite.
    """
    import torch

    with _opened(path) as tensors:
        for name in tensors.keys():
            entry = tensors.get_slice(name)
            shape = entry.get_shape()
            if entry.get_dtype() not in FLOATS or any(part in name for part in BESIDE):
                continue
            # A tensor without dimensions has no rows to be read by.
            rows = max(1, READ_AT_ONCE // max(1, math.prod(shape[1:]))) if shape else 1
            parts = (entry[at : at + rows] for at in range(0, shape[0], rows)) if shape else (tensors.get_tensor(name),)
            wrong = sum(int((~torch.isfinite(part)).sum()) for part in parts)
            if wrong:
                raise ModelError(
                    f"model file {str(path)!r}: {wrong:,} of the {math.prod(shape):,} numbers of {name!r} are NaN or "
                    "infinite, as after a training that diverged. Name a model from before that."
                )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of weights, without reading them.

    Raises:
        ModelError: it is damaged, or Git LFS has not downloaded it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as stream:
            pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        if pointer:
            raise ModelError(f"model file {str(path)!r} is a pointer of Git LFS. Get its content with `git lfs pull`.")
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"model file {str(path)!r} is damaged or was cut ({' '.join(str(error).split())}). Download or save it "
            "again."
        ) from None


def cached_folder(name: str) -> Path | None:
    """Return the folder of a model of the hub in the cache on this machine; None where it has no weights yet."""
    from huggingface_hub import try_to_load_from_cache

    for file in (WHOLE, INDEX):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return Path(found).parent
    return None
