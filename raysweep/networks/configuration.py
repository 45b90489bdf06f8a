"""From a model's name to its configuration, its family and its task; no weights are read here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysweep.contracts import Facts, Family
from raysweep.errors import ModelError, known_names_hint
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import ModelSpec

OWN_SUFFIXES = ("-nano", "-pico", "-micro")
"""Suffixes of from-scratch sizes. No hub name without an owner ends so, and the hub takes no new ones of that kind."""


ADAPTER = "adapter_config.json"
"""The file by which PEFT marks a folder of changes to another model's weights."""


DROPOUTS = (
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "layerdrop", "hidden_dropout",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
)  # fmt: skip
"""Every name that configurations of transformers have for a dropout rate."""


def task_of(model: ModelSpec) -> str:
    """Return the task that a model is to learn.

    Raises:
        ModelError: the model's family cannot learn it, or the model is unknown.
    """
    sizes = scratch_sizes()
    if model.name in sizes:
        family: Family = registry.build("models", sizes[model.name], model.options)
    else:
        family = family_of(pretrained_config(model.name), model.name)
    if model.task is not None and model.task not in family.tasks:
        hint = known_names_hint(model.task, family.tasks)
        raise ModelError(f"model.task = {model.task!r}: model {model.name!r} cannot learn that. {hint}")
    return model.task or family.tasks[0]


def configuration(model: ModelSpec, *, seq_len: int) -> tuple[Any, Family]:
    """Return a model's configuration, at its size's largest vocabulary, and its family.

    Raises:
        ModelError: as `check_model`.
    """
    if model.name in scratch_sizes():
        return _scratch_config(model, None, seq_len)
    config = pretrained_config(model.name)
    return config, family_of(config, model.name)


def _scratch_config(model: ModelSpec, vocab_size: int | None, seq_len: int) -> tuple[Any, Family]:
    """Return the configuration of a from-scratch size and its family; the vocabulary is its largest unless given."""
    family: Family = registry.build("models", scratch_sizes()[model.name], model.options)
    if vocab_size is None:
        # Image sizes have no vocabulary; their families leave the number out.
        vocab_size = family.sizes[model.name].get("vocab_size", 0)
    return family.config(model.name, vocab_size=vocab_size, seq_len=seq_len), family


def fitted_config(model: ModelSpec, facts: Facts, seq_len: int) -> tuple[Any, Family]:
    """Return a model's configuration for the data, dropout off, and its family.

    Raises:
        ModelError: the model has too few tokens, positions or segments, or takes other images.
    """
    if model.name in scratch_sizes():
        config, family = _scratch_config(model, facts.vocab_size or 0, seq_len)
    else:
        config = pretrained_config(model.name)
        family = family_of(config, model.name)
        _fit_to_text(config, model.name, facts.vocab_size or 0, seq_len, family)
    if facts.image_shape is not None:
        _check_images(config, model.name, facts.image_shape)
    if facts.pairs:
        _check_segments(config, model.name)
    if facts.num_classes is not None:
        config.num_labels = facts.num_classes
    return config, family


def _check_images(config: Any, name: str, shape: tuple[int, int, int]) -> None:
    # Configurations give the side of a square image, or height and width.
    size = config.image_size
    own = (config.num_channels, *((size, size) if isinstance(size, int) else size))
    if own != shape:
        takes, found = (" x ".join(map(str, sides)) for sides in (own, shape))
        raise ModelError(
            f"model {name!r} takes images of {takes} (channels, height, width), but the data's have {found}. "
            "Choose a model of that size."
        )


def _check_segments(config: Any, name: str) -> None:
    # Families without segments have no such field; RoBERTa of the hub has it, with 1 segment.
    segments = getattr(config, "type_vocab_size", 0)
    if segments < 2:
        raise ModelError(
            f"model {name!r} has {segments} segment embeddings, but every example of the data is a pair of sentences. "
            "Choose one with 2, such as a BERT, or a from-scratch PNN with model.type_vocab_size: 2."
        )


def _fit_to_text(config: Any, name: str, vocab_size: int, seq_len: int, family: Family) -> None:
    # Pretrained configurations often ask for dropout; from-scratch ones of the same family are built without.
    for field in DROPOUTS:
        if hasattr(config, field):
            setattr(config, field, 0.0)
    check_positions(config, name, seq_len, family)
    # A larger vocabulary than the tokenizer's is common (padded to a multiple of 64) and harmless; a smaller
    # one would index past the embedding table.
    if vocab_size > getattr(config, "vocab_size", vocab_size):
        raise ModelError(f"model {name!r} knows {config.vocab_size} tokens, but the tokenizer has {vocab_size}.")


def check_positions(config: Any, name: str, seq_len: int, family: Family) -> None:
    """Check that windows of `seq_len` tokens fit a model's table of positions.

    Raises:
        ModelError: they do not.
    """
    positions = positions_of(config, family)
    if seq_len > positions:
        raise ModelError(f"model {name!r} has {positions:.0f} positions, fewer than data.seq_len = {seq_len}.")


def positions_of(config: Any, family: Family) -> float:
    """Return how many tokens a window may have; infinity where a network has no table of positions."""
    table = getattr(config, "max_position_embeddings", math.inf)
    # RoBERTa counts positions from the padding token's id, so the first rows of its table belong to no token.
    return float(table - family.reserved_positions(config))


def is_hub_name(name: str) -> bool:
    """Return whether a name can only be looked up on the hub: neither a path nor a name of our own sizes."""
    path_like = Path(name).is_dir() or Path(name).is_absolute() or name.startswith((".", "~"))
    # A misspelt from-scratch size gets a hint with the known ones, at once, instead of a request to the hub.
    of_ours = name in scratch_sizes() or ("/" not in name and name.endswith(OWN_SUFFIXES))
    return not path_like and not of_ours


def pretrained_config(name: str) -> Any:
    """Read a configuration from a local folder or the hub.

    Raises:
        ModelError: there is no such model, or its configuration cannot be read.
    """
    from transformers import AutoConfig

    # Importing it registers our networks, so that AutoConfig knows them.
    import raysweep.networks.pnn.network  # noqa: F401

    # A folder wins over a hub name: what is here is never looked up elsewhere.
    folder = Path(name)
    if folder.is_dir():
        return _config_in(folder)
    if not is_hub_name(name) and not name.endswith(OWN_SUFFIXES):
        raise ModelError(f"model folder {name!r} does not exist.")
    sizes = f"From-scratch sizes: {known_names_hint(name, scratch_sizes())}"
    if not is_hub_name(name):
        raise ModelError(f"model.name = {name!r} is neither a folder here nor a name of the hub. {sizes}")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.name = {name!r} is neither a folder here nor a model that can be loaded ({reason}). {sizes}"
        ) from error
    _check_trainable(config.to_dict(), name)
    return config


def _config_in(folder: Path) -> Any:
    """Read a folder's configuration.

    Raises:
        ModelError: there is none, it is no JSON object, or transformers knows no such architecture.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"model folder {str(folder)!r} holds an adapter of PEFT ({ADAPTER}), which changes the weights of another "
            "model. Merge the two with merge_and_unload(), and name the folder that you save that in."
        )
    if not path.is_file():
        raise ModelError(f"model folder {str(folder)!r} holds no config.json. Save it with save_pretrained().")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{str(path)!r} is not valid JSON ({error}). Save the model again with save_pretrained()."
        ) from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise ModelError(f"{str(path)!r} names no model_type. Save the model again with save_pretrained().")
    # Before transformers reads it: for an unknown architecture our hint names the families that work here.
    _check_family(kind, str(folder))
    _check_trainable(content, str(folder))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # Any exception: each family's configuration class raises its own kind on a value that it does not take.
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{str(path)!r} is not a valid configuration of a {kind!r}: {reason}") from error


def _check_trainable(config: Mapping[str, Any], name: str) -> None:
    """Check by its configuration that a model's weights are plain numbers, and its code that of transformers.

    Args:
        config: the content of its config.json.
        name: the model's, for the message.

    Raises:
        ModelError: it is quantised, or brings code of its own.
    """
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown method") if isinstance(quantised, dict) else "unknown method"
        raise ModelError(
            f"model {name!r} is quantised ({method}): its weights are no numbers that can be trained. Name the "
            "model that it was made from."
        )
    if config.get("auto_map"):
        raise ModelError(
            f"model {name!r} brings code of its own (auto_map in config.json), which is not run. Name a model of "
            "transformers, or remove auto_map if the network is a plain one."
        )


def family_of(config: Any, name: str) -> Family:
    """Return the family that a configuration belongs to.

    Args:
        name: the model's, for the message.

    Raises:
        ModelError: the family has no file in raysweep/networks/models/.
    """
    _check_family(config.model_type, name)
    return registry.build("models", config.model_type)


def _check_family(model_type: str, name: str) -> None:
    known = registry.available("models")
    if model_type not in known:
        raise ModelError(
            f"model {name!r} is a {model_type!r}: {known_names_hint(model_type, known)} "
            "To add a family, write raysweep/networks/models/<model_type>.py (see CONTRIBUTING.md)."
        )
