"""Load a trained language model in its full shape, and windows of a text to measure it on."""

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
"""How much of a file is read at first, for each token that is needed; no tokenizer's mean token is nearly as long."""


def trained_task(name: str) -> str:
    """Return the task of a trained language model, a file in raysweep/networks/tasks/, without loading its weights.

    Args:
        name: a hub name, a folder or an export.

    Raises:
        ModelError: it is a size to train from scratch, unknown, or does not predict tokens.
    """
    if name in scratch_sizes():
        raise ModelError(f"{name!r} is a size to train from scratch. Name a hub model or a folder with weights.")
    # An export says what its network learned; of another model the first task of its family is taken.
    task = Manifest.read(Path(name)).task if is_export(name) else task_of(ModelSpec(name=name))
    if registry.load("tasks", task).reads != "windows":
        raise ModelError(f"model {name!r} learned {task}: it does not predict tokens of a text.")
    return task


def load_trained_network(spec: ModelSpec, facts: Facts, seq_len: int) -> tuple[Any, Family, HeadMap]:
    """Return a trained network in its full shape, its family and its heads: all, unless an export has fewer.

    Args:
        facts: of the text under the tokenizer that it is read with.

    Raises:
        ModelError: it cannot be loaded, takes shorter windows only, or knows fewer tokens.
    """
    exported: HeadMap | None = None
    if is_export(spec.name):
        network, family, exported = load_whole(spec.name)
    else:
        # A length of 1 always fits: an error about positions is to name --seq-len, below, not data.seq_len.
        network, family = build_network(spec, facts, seq_len=1, seed=0)
    check_length(spec.name, positions_of(network.config, family), seq_len)
    check_vocabulary(spec.name, network, facts)
    sites = family.sites(network)
    return network.eval(), family, exported or HeadMap.full(len(sites), sites[0].num_heads)


def load_plastic_model(spec: ModelSpec, facts: Facts, seq_len: int) -> tuple[PlasticModel, HeadMap]:
    """Return a trained network with a gate on every head, and its head map.

    Raises:
        ModelError: as `load_trained_network`.
    """
    network, family, head_map = load_trained_network(spec, facts, seq_len)
    return PlasticModel(network, family.sites(network)), head_map


def check_length(name: str, positions: float, seq_len: int) -> None:
    """Check that a model has positions for windows of `seq_len` tokens.

    Raises:
        ModelError: it has not.
    """
    if seq_len > positions:
        raise ModelError(f"model {name!r} has {positions:.0f} positions, fewer than --seq-len {seq_len}.")


def check_vocabulary(name: str, network: Any, facts: Facts) -> None:
    """Check that a network has an embedding for every token of the tokenizer; it may have more.

    Raises:
        ModelError: it has not.
    """
    if (facts.vocab_size or 0) > network.config.vocab_size:
        raise ModelError(
            f"model {name!r} knows {network.config.vocab_size} tokens, but the tokenizer has {facts.vocab_size}."
        )


def text_windows(data: Path, tokenizer: Any, seq_len: int, windows: int) -> Examples:
    """Return consecutive windows from the start of a text file, without special tokens, (windows, seq_len).

    Raises:
        DataError: the text is missing, unreadable or too short.
    """
    needed = seq_len * windows
    try:
        with data.open(encoding="utf-8") as stream:
            # Only the beginning is read, so that a huge file costs no more than a short one.
            text = stream.read(CHARACTERS_A_TOKEN * needed)
            tokens = tokenizer.encode(text, add_special_tokens=False).ids
            # The cut may go through a word and change the tokens around it. Twice as many tokens as are needed keep
            # the cut far away; with fewer, the whole file is read.
            if len(tokens) < 2 * needed:
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
