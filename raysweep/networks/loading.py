"""From a model's name to a network: a from-scratch size, a local folder, or a hub name."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.contracts import Facts, Family
from raysweep.errors import ModelError, known_names_hint
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import ModelSpec
from raysweep.networks.quiet import quietly

if TYPE_CHECKING:
    from raysweep.networks.plasticity.model import PlasticModel


WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


OWN_SUFFIXES = ("-nano", "-pico", "-micro")
"""What names of from-scratch sizes end with. No name on the hub without an owner does, and no new ones come there."""


HEADS = ("classifier.", "decoder.", "cls.", "lm_head.")
"""Layers after the trunk, which belong to a task: a network that learns a new one draws its own and leaves the old."""


BESIDE = ("pooler.", "cls.seq_relationship.", "attn.masked_bias")
"""What checkpoints of transformers hold beside the weights: heads of other tasks, masks that were once saved."""


DROPOUTS = (
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "layerdrop", "hidden_dropout",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
)  # fmt: skip
"""Every name that a configuration has for a rate at which something is dropped in training."""


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


def build_network(
    model: ModelSpec, facts: Facts, *, seq_len: int, seed: int, new_weights: bool = False
) -> tuple[Any, Family]:
    """Build a network with its first weights: pretrained, or random from the seed. Dropout is off.

    Args:
        new_weights: draw them from the seed even where there are pretrained ones.

    Raises:
        ModelError: it cannot be loaded, or does not fit the data.
    """
    import torch

    config, family = fitted_config(model, facts, seq_len)
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(seed)
        if new_weights or model.name in scratch_sizes():
            return _model_class(model).from_config(config, attn_implementation="sdpa"), family
        return _pretrained_network(model, config), family


def _pretrained_network(model: ModelSpec, config: Any) -> Any:
    """Load a network; a classifier's head is drawn anew where none was saved, or one for another number of classes.

    Weights of another shape are never replaced silently: what is loaded has the shapes that were saved.
    """
    new_head = registry.load("tasks", task_of(model)).new_head
    saved = copy.deepcopy(config)
    saved.num_labels = pretrained_config(model.name).num_labels
    network = _loaded(model, saved, new_head)
    if not new_head or saved.num_labels == config.num_labels:
        return network
    fresh = _model_class(model).from_config(config, attn_implementation="sdpa")
    shapes = {name: weights.shape for name, weights in fresh.state_dict().items()}
    fresh.load_state_dict(
        {name: weights for name, weights in network.state_dict().items() if shapes[name] == weights.shape}, strict=False
    )
    return fresh


def _loaded(model: ModelSpec, config: Any, new_head: bool) -> Any:
    import torch
    from safetensors import SafetensorError

    try:
        with quietly():
            network, report = _model_class(model).from_pretrained(
                model.name, config=config, dtype=torch.float32, attn_implementation="sdpa",
                use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # missing, unfit or damaged weights
        raise ModelError(f"model {model.name!r} cannot be loaded: {_reason(error)}") from error
    exempt = HEADS if new_head else ()
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith(exempt))
    if lacking:
        raise ModelError(
            f"model {model.name!r} lacks weights: {_some(lacking)}. If they are a head's, it was saved for "
            "something else: choose a model that has learned the task."
        )
    beside = [key for key in report["unexpected_keys"] if not any(part in key for part in BESIDE)]
    unused = sorted(key for key in beside if not key.startswith(exempt))
    if unused:
        raise ModelError(
            f"model {model.name!r} holds weights that the network of its config.json has no place for: "
            f"{_some(unused)}. Correct config.json, or save the network again with save_pretrained()."
        )
    return network


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _reason(error: Exception) -> str:
    if "ignore_mismatched_sizes" not in str(error):
        return str(error)
    return "its weights have other shapes than its config.json says, as in a compact export: export it as dense."


def build_skeleton(model: ModelSpec, *, seq_len: int) -> PlasticModel:
    """Build a model without weights, for its shapes only.

    Raises:
        ModelError: as `check_model`.
    """
    import torch

    from raysweep.networks.plasticity.model import PlasticModel

    config, family = configuration(model, seq_len=seq_len)
    try:
        with torch.device("meta"):
            network = _model_class(model).from_config(config)
    except ValueError as error:  # sizes that contradict each other, such as a width that heads do not divide
        raise ModelError(f"model {model.name!r} cannot be built as its configuration says: {error}") from error
    return PlasticModel(network, family.sites(network))


def configuration(model: ModelSpec, *, seq_len: int) -> tuple[Any, Family]:
    """Return a model's configuration, at its size's largest vocabulary, and its family.

    Raises:
        ModelError: as `check_model`.
    """
    sizes = scratch_sizes()
    if model.name in sizes:
        family: Family = registry.build("models", sizes[model.name], model.options)
        vocab_size = family.sizes[model.name].get("vocab_size", 0)
        return family.config(model.name, vocab_size=vocab_size, seq_len=seq_len), family
    config = pretrained_config(model.name)
    return config, family_of(config, model.name)


def _model_class(model: ModelSpec) -> Any:
    return network_class(registry.load("tasks", task_of(model)).model_class)


def network_class(name: str) -> Any:
    """Return a class of networks, of transformers or of ours, by its name; None where there is none."""
    import transformers

    from raysweep.networks.pnn import network  # the automatic classes know ours from here on

    return getattr(transformers, name, None) or getattr(network, name, None)


def fitted_config(model: ModelSpec, facts: Facts, seq_len: int) -> tuple[Any, Family]:
    """Return a model's configuration for the data, dropout off, and its family."""
    sizes = scratch_sizes()
    if model.name in sizes:
        family: Family = registry.build("models", sizes[model.name], model.options)
        config = family.config(model.name, vocab_size=facts.vocab_size or 0, seq_len=seq_len)
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
    size = config.image_size
    own = (config.num_channels, *((size, size) if isinstance(size, int) else size))
    if own != shape:
        takes, found = (" x ".join(map(str, sides)) for sides in (own, shape))
        raise ModelError(
            f"model {name!r} takes images of {takes} (channels, height, width), but the data's have {found}. "
            "Choose a model of that size."
        )


def _check_segments(config: Any, name: str) -> None:
    segments = getattr(config, "type_vocab_size", 0)
    if segments < 2:
        raise ModelError(
            f"model {name!r} tells {segments} segments apart, but the examples of the data are pairs of sentences. "
            "Choose one with 2, such as a BERT, or a from-scratch PNN with model.type_vocab_size: 2."
        )


def _fit_to_text(config: Any, name: str, vocab_size: int, seq_len: int, family: Family) -> None:
    for field in DROPOUTS:
        if hasattr(config, field):
            setattr(config, field, 0.0)
    check_positions(config, name, seq_len, family)
    if vocab_size > getattr(config, "vocab_size", vocab_size):
        raise ModelError(f"model {name!r} knows {config.vocab_size} tokens, but the tokenizer has {vocab_size}.")


def check_positions(config: Any, name: str, seq_len: int, family: Family) -> None:
    positions = positions_of(config, family)
    if seq_len > positions:
        raise ModelError(f"model {name!r} has {positions:.0f} positions, fewer than data.seq_len = {seq_len}.")


def positions_of(config: Any, family: Family) -> float:
    """Return how many tokens a window may have; infinity where a network has no table of positions."""
    table = getattr(config, "max_position_embeddings", math.inf)
    return float(table - family.reserved_positions(config))


def is_hub_name(name: str) -> bool:
    """Whether only the hub can tell if there is such a model."""
    path_like = Path(name).is_dir() or Path(name).is_absolute() or name.startswith((".", "~"))
    of_ours = name in scratch_sizes() or ("/" not in name and name.endswith(OWN_SUFFIXES))
    return not path_like and not of_ours


def pretrained_config(name: str) -> Any:
    from transformers import AutoConfig

    import raysweep.networks.pnn.network  # noqa: F401  # so that AutoConfig knows it

    folder = Path(name)
    if folder.is_dir():
        return _config_in(folder)
    if not is_hub_name(name) and not name.endswith(OWN_SUFFIXES):
        raise ModelError(f"model folder {name!r} does not exist.")
    sizes = f"From-scratch sizes: {known_names_hint(name, scratch_sizes())}"
    if not is_hub_name(name):
        raise ModelError(f"model.name = {name!r} is neither a folder here nor a name of the hub. {sizes}")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.name = {name!r} is neither a folder here nor a model that can be loaded ({reason}). {sizes}"
        ) from error


def _config_in(folder: Path) -> Any:
    """Read a folder's configuration.

    Raises:
        ModelError: there is none, it is no JSON object, or transformers knows no such architecture.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"model folder {str(folder)!r} holds no config.json. Save it with save_pretrained().")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} is no JSON ({error}). Save the model again with save_pretrained().") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise ModelError(f"{str(path)!r} names no model_type. Save the model again with save_pretrained().")
    _check_family(kind, str(folder))
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # every family's configuration raises what it likes on a value that it does not take
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{str(path)!r} is no configuration of a {kind!r}: {reason}") from error


def family_of(config: Any, name: str) -> Family:
    _check_family(config.model_type, name)
    return registry.build("models", config.model_type)


def _check_family(model_type: str, name: str) -> None:
    known = registry.available("models")
    if model_type not in known:
        raise ModelError(
            f"model {name!r} is a {model_type!r}: {known_names_hint(model_type, known)} "
            "To add a family, write raysweep/networks/models/<model_type>.py (see CONTRIBUTING.md)."
        )


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
