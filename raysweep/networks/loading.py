"""From a model's name to a network with weights: from-scratch sizes, local folders and hub names."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raysweep.contracts import Facts, Family
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import ModelSpec
from raysweep.networks.configuration import configuration, fitted_config, pretrained_config, task_of
from raysweep.networks.quiet import quietly

if TYPE_CHECKING:
    from raysweep.networks.plasticity.model import PlasticModel


HEADS = ("classifier.", "decoder.", "cls.", "lm_head.")
"""Prefixes of the layers after the trunk. A task with a new head draws its own and ignores the saved ones."""


BESIDE = ("pooler.", "cls.seq_relationship.", "attn.masked_bias")
"""Checkpoints of transformers may hold these beside the weights: heads of other tasks, masks that were once saved."""


def build_network(
    model: ModelSpec, facts: Facts, *, seq_len: int, seed: int, new_weights: bool = False
) -> tuple[Any, Family]:
    """Build a network with its first weights: pretrained, or random from the seed. Dropout is off.

    Args:
        new_weights: draw weights from the seed even where there are pretrained ones.

    Raises:
        ModelError: it cannot be loaded, or does not fit the data.
    """
    import torch

    config, family = fitted_config(model, facts, seq_len)
    # transformers draws first weights from the global generator. Forking seeds it here and restores it afterwards, so
    # building a network disturbs no other draw.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if new_weights or model.name in scratch_sizes():
            return _model_class(model).from_config(config, attn_implementation="sdpa"), family
        return _pretrained_network(model, config), family


def _pretrained_network(model: ModelSpec, config: Any) -> Any:
    """Load a pretrained network; draw a classifier's head where none was saved, or one for other classes.

    Weights of other shapes are never replaced silently: the checkpoint is loaded with the shapes it was saved with.
    """
    new_head = registry.load("tasks", task_of(model)).new_head
    # Two steps instead of from_pretrained(ignore_mismatched_sizes=True), which would also draw every other
    # mismatched tensor at random without a word (heads.md 3.8). First load with the number of classes that was
    # saved...
    saved = copy.deepcopy(config)
    saved.num_labels = pretrained_config(model.name).num_labels
    network = _loaded(model, saved, new_head)
    if not new_head or saved.num_labels == config.num_labels:
        return network
    # ...then copy all but the head into a network with the classes of the data.
    fresh = _model_class(model).from_config(config, attn_implementation="sdpa")
    shapes = {name: weights.shape for name, weights in fresh.state_dict().items()}
    fresh.load_state_dict(
        {name: weights for name, weights in network.state_dict().items() if shapes[name] == weights.shape}, strict=False
    )
    return fresh


def check_loads(model: ModelSpec, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that a model of a folder or the hub can be loaded from weights of these shapes; no weight is read.

    Args:
        shapes: of every weight, by its name in the files.

    Raises:
        ModelError: weights are missing, have no place in the network, or have other shapes than in it.
    """
    import torch

    config = pretrained_config(model.name)
    new_head = registry.load("tasks", task_of(model)).new_head
    # One number seen everywhere: it takes no memory, and transformers renames, ties and compares as if it were weights.
    stand_ins = {name: torch.zeros(()).expand(tuple(shape)) for name, shape in shapes.items()}
    network_type = type(_on_meta(model, config))
    with quietly():
        _, report = network_type.from_pretrained(
            None, config=config, state_dict=stand_ins, dtype=torch.float32, attn_implementation="sdpa",
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    _check_report(model, report, new_head)
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"model {model.name!r} cannot be loaded: {name} has the shape {tuple(found)}, but config.json asks for "
            f"{tuple(expected)}. Correct config.json; a compact export has to be exported as dense."
        )


def _loaded(model: ModelSpec, config: Any, new_head: bool) -> Any:
    import torch
    from safetensors import SafetensorError

    try:
        with quietly():
            network, report = _model_class(model).from_pretrained(
                model.name, config=config, dtype=torch.float32, attn_implementation="sdpa",
                use_safetensors=True, output_loading_info=True, trust_remote_code=False,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        # Missing, unfit or damaged weights: transformers, torch and safetensors each raise their own kind.
        raise ModelError(f"model {model.name!r} cannot be loaded: {_reason(error)}") from error
    _check_report(model, report, new_head)
    return network


def _check_report(model: ModelSpec, report: Mapping[str, Any], new_head: bool) -> None:
    """Check what transformers reports of the weights that it loaded.

    Raises:
        ModelError: weights are missing, or have no place in the network.
    """
    exempt = HEADS if new_head else ()
    # transformers fills missing weights at random and only logs it. Here that is an error, except for a head
    # that the task draws anyway.
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith(exempt))
    if lacking:
        raise ModelError(
            f"model {model.name!r} lacks weights: {_some(lacking)}. If they are a head's, it was saved for "
            "something else: choose a model that has learned the task."
        )
    # Unused weights mean that config.json describes a smaller network than was saved: also an error.
    beside = [key for key in report["unexpected_keys"] if not any(part in key for part in BESIDE)]
    unused = sorted(key for key in beside if not key.startswith(exempt))
    if unused:
        raise ModelError(
            f"model {model.name!r} holds weights that the network of its config.json has no place for: "
            f"{_some(unused)}. Correct config.json, or save the network again with save_pretrained()."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _reason(error: Exception) -> str:
    """Return why a checkpoint cannot be loaded, without advice that would fill weights at random."""
    if "ignore_mismatched_sizes" not in str(error):
        return " ".join(str(error).split())[:300]
    return "its weights have other shapes than its config.json says, as in a compact export: export it as dense."


def build_skeleton(model: ModelSpec, *, seq_len: int) -> PlasticModel:
    """Build a model on the meta device, for its shapes only.

    Raises:
        ModelError: as `check_model`.
    """
    from raysweep.networks.plasticity.model import PlasticModel

    config, family = configuration(model, seq_len=seq_len)
    network = _on_meta(model, config)
    return PlasticModel(network, family.sites(network))


def _on_meta(model: ModelSpec, config: Any) -> Any:
    """Build a network on the meta device.

    Raises:
        ModelError: its configuration contradicts itself.
    """
    import torch

    try:
        # On the meta device tensors have shapes but no storage: even large models are built at once, on any
        # machine. The way in which attention is computed is ours, whatever the configuration was saved with.
        with torch.device("meta"):
            return _model_class(model).from_config(config, attn_implementation="sdpa")
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        # Sizes may contradict each other, such as a width that the number of heads does not divide, or be no numbers.
        reason = " ".join(str(error).split())
        raise ModelError(f"model {model.name!r} cannot be built as its configuration says: {reason}") from error


def _model_class(model: ModelSpec) -> Any:
    return network_class(registry.load("tasks", task_of(model)).model_class)


def network_class(name: str) -> Any:
    """Return the class of networks with a name, from transformers or from networks/pnn/; None if there is none."""
    import transformers

    # Importing it registers our networks with transformers' automatic classes.
    from raysweep.networks.pnn import network

    return getattr(transformers, name, None) or getattr(network, name, None)
