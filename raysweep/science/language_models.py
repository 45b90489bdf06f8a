"""What is asked of a trained language model starts here: the model, whole, and windows of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from raysweep.contracts import Examples, Facts, Family
from raysweep.errors import DataError, ModelError
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import ModelSpec
from raysweep.networks.configuration import positions_of, task_of
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.trial.data.tokens import windows_of
from raysweep.trial.exports.load import is_export, load_whole
from raysweep.trial.exports.manifest import Manifest

CHARACTERS_A_TOKEN = 64
"""Of the beginning of a file that is read first; no tokenizer's mean is nearly as long."""


def trained_task(name: str) -> str:
    """Return what a trained language model predicts, a file in raysweep/networks/tasks/; its weights are not loaded.

    Raises:
        ModelError: it is a size to train from scratch, unknown, or no model of a language.
    """
    if name in scratch_sizes():
        raise ModelError(f"{name!r} is a size to train from scratch. Name a hub model or a folder with weights.")
    task = Manifest.read(Path(name)).task if is_export(name) else task_of(ModelSpec(name=name))
    if registry.load("tasks", task).reads != "windows":
        raise ModelError(f"model {name!r} learned {task}: it does not predict tokens of a text.")
    return task


def load_network(spec: ModelSpec, facts: Facts, seq_len: int) -> tuple[Any, Family, HeadMap]:
    """Return a trained network in its full shape with the heads that it has: all, unless it is an export of a trial.

    Raises:
        ModelError: it cannot be loaded, takes shorter windows only, or knows fewer tokens.
    """
    exported: HeadMap | None = None
    if is_export(spec.name):
        network, family, exported = load_whole(spec.name)
    else:
        network, family = build_network(spec, facts, seq_len=1, seed=0)  # its length is checked here
    positions = positions_of(network.config, family)
    if seq_len > positions:
        raise ModelError(f"model {spec.name!r} has {positions:.0f} positions, fewer than --seq-len {seq_len}.")
    if (facts.vocab_size or 0) > network.config.vocab_size:
        raise ModelError(
            f"model {spec.name!r} knows {network.config.vocab_size} tokens, but the tokenizer has {facts.vocab_size}."
        )
    sites = family.sites(network)
    return network.eval(), family, exported or HeadMap.full(len(sites), sites[0].num_heads)


def load_model(spec: ModelSpec, facts: Facts, seq_len: int) -> tuple[PlasticModel, HeadMap]:
    """Return what `load_network` loads, with a gate on every head."""
    network, family, head_map = load_network(spec, facts, seq_len)
    return PlasticModel(network, family.sites(network)), head_map


def text_windows(data: Path, tokenizer: Any, seq_len: int, windows: int) -> Examples:
    """Return consecutive windows from the start of a text file, without special tokens, (windows, seq_len).

    Raises:
        DataError: the text is missing, unreadable or too short.
    """
    needed = seq_len * windows
    try:
        with data.open(encoding="utf-8") as stream:
            text = stream.read(CHARACTERS_A_TOKEN * needed)
            tokens = tokenizer.encode(text, add_special_tokens=False).ids
            if len(tokens) < 2 * needed:  # too near to where it was cut
                tokens = tokenizer.encode(text + stream.read(), add_special_tokens=False).ids
    except OSError as error:
        raise DataError(f"--data {str(data)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--data {str(data)!r} is not UTF-8 text (byte {error.start}).") from error
    if len(tokens) < needed:
        raise DataError(
            f"--data {str(data)!r} has {len(tokens)} tokens, fewer than {windows} windows of {seq_len} = {needed}. "
            "Give a longer text, or lower --windows or --seq-len."
        )
    return windows_of(np.array(tokens[:needed], np.int64), seq_len)
