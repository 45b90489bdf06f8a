"""Check before a run that a model exists, fits its data, and compiles where a job asks for that; loads no weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from raysweep.contracts import Facts
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.job.plan import content_key
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import ModelSpec
from raysweep.networks.configuration import (
    check_positions,
    configuration,
    family_of,
    fitted_config,
    pretrained_config,
    task_of,
)
from raysweep.networks.loading import build_skeleton
from raysweep.networks.weights import cached_folder, check_weights


def check_model(model: ModelSpec, *, seq_len: int) -> str:
    """Check that a model can be loaded and takes windows of `seq_len`; its weights are looked at, not loaded.

    Returns:
        The model's fingerprint.

    Raises:
        ModelError: unknown name, a family without a file in raysweep/networks/models/, or weights that are missing,
            damaged, quantised, not finite, or not those of the network.
    """
    # The fingerprint names what the function depends on: a size's own numbers, the hub's commit, or the bytes
    # of a folder.
    sizes = scratch_sizes()
    if model.name in sizes:
        task_of(model)
        family_name = sizes[model.name]
        return content_key([family_name, registry.load("models", family_name).sizes[model.name]])
    config = pretrained_config(model.name)
    family = family_of(config, model.name)
    task_of(model)
    check_positions(config, model.name, seq_len, family)
    folder = Path(model.name)
    if not folder.is_dir():
        # What the cache holds already is checked; what has to be downloaded is, when it is loaded.
        if (cached := cached_folder(model.name)) is not None:
            check_weights(model, cached)
        return content_key([model.name, getattr(config, "_commit_hash", None)])
    # First what its configuration says: a fault there says more than weights that do not fit it.
    build_skeleton(model, seq_len=seq_len)
    check_weights(model, folder)
    # The configuration counts: with other head counts or activations the same weights are another function.
    return content_key([_file_sha256(path) for path in (folder / "config.json", *sorted(folder.glob("*.safetensors")))])


def check_compiles(model: ModelSpec, *, seq_len: int) -> None:
    """Check that torch.compile can compile a model as one graph: with gates and hooks, for every step of training.

    Raises:
        ModelError: it cannot.
    """
    config, family = configuration(model, seq_len=seq_len)
    # With random depth the number of steps changes from one training step to the next, and each number would be
    # traced and compiled anew.
    random_depth = getattr(config, "random_depth", False)
    if random_depth or not family.compiles:
        what = "its depth is random" if random_depth else "only networks of pnn are"
        raise ModelError(f"training.compile: model {model.name!r} cannot be compiled: {what}. Remove training.compile.")


def check_fit(model: ModelSpec, facts: Facts, *, seq_len: int) -> None:
    """Check that a model fits the data, without loading its weights.

    Raises:
        ModelError: it has too few tokens, positions or segments, or takes other images.
    """
    fitted_config(model, facts, seq_len)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
