"""Load an exported folder as a network with the same weights, bit for bit and of the same shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights

from raysweep.contracts import Family
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.networks.loading import network_class
from raysweep.networks.plasticity.compaction import densify, key_value_index, shrink, unloaded
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.quiet import quietly
from raysweep.trial.exports.manifest import FILE, Manifest

WEIGHTS = "model.safetensors"


def load_model(folder: str | Path) -> Any:
    """Return an exported network of either format, in evaluation mode, on the CPU.

    Raises:
        ModelError: the folder is no export of raysweep, or it is damaged.
    """
    network, _, _ = _load(Path(folder))
    return network


def is_export(folder: str | Path) -> bool:
    """Return whether a folder on this machine is an export of raysweep."""
    return (Path(folder) / FILE).is_file()


def load_whole(folder: str | Path) -> tuple[Any, Family, HeadMap]:
    """Return an exported network in its full shape, absent heads zero, with its family and head map.

    Heads can be measured, gated and grown in this form only.

    Raises:
        ModelError: as `load_model`.
    """
    network, manifest, head_map = _load(Path(folder))
    family: Family = registry.build("models", manifest.family)
    return (network if manifest.format == "dense" else densify(network, family, head_map)), family, head_map


def _load(folder: Path) -> tuple[Any, Manifest, HeadMap]:
    """Return the network as it was exported, its manifest and its head map."""
    manifest = Manifest.read(folder)
    network = _of_full_shape(folder, manifest)
    family: Family = registry.build("models", manifest.family)
    head_map = _head_map(folder, manifest, network, family)
    try:
        if manifest.format == "compact":
            # transformers cannot build a network whose layers have different numbers of heads. It is built in the full
            # shape and shrunk by the head map; strict loading then checks every name and shape.
            shrink(network, family, head_map)
            load_weights(network, folder / WEIGHTS, strict=True)
        else:
            network = _plain(folder, type(network), network.config)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        # Strict loading lists every tensor that does not fit; the beginning tells enough.
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the weights {str(folder / WEIGHTS)!r} cannot be loaded: {reason}") from error
    return network.eval(), manifest, head_map


def _plain(folder: Path, model_class: Any, config: Any) -> Any:
    """Load a dense folder by transformers itself, which translates the older weight names that it was saved with.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape.
    """
    # In the precision of the file, whatever the default of torch or transformers is: weights come back bit for bit.
    with quietly():
        network, report = model_class.from_pretrained(
            folder, config=config, dtype=config.dtype, attn_implementation="sdpa", use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    # transformers only warns of such weights, and fills missing ones with random numbers.
    wrong = {problem: sorted(map(str, names)) for problem, names in report.items() if names}
    if wrong:
        raise ValueError(str(wrong))
    return network


def _of_full_shape(folder: Path, manifest: Manifest) -> Any:
    """Build a network of the full shape from a folder's configuration, its weights still to be loaded.

    Raises:
        ModelError: configuration and manifest cannot be read or do not fit each other.
    """
    model_class = network_class(manifest.model_class)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{str(folder / 'config.json')!r} cannot be read: {reason}") from error
    # An export may come from anywhere: its names must fit its configuration before a network is built from them.
    if manifest.family not in registry.available("models") or config.model_type != manifest.family:
        raise ModelError(
            f"{str(folder)!r} is damaged: raysweep.json says {manifest.family!r}, config.json {config.model_type!r}."
        )
    if getattr(model_class, "config_class", None) is not type(config):
        raise ModelError(f"{str(folder)!r} is damaged: {manifest.model_class!r} is no model of {manifest.family!r}.")
    network = unloaded(model_class, config, config.dtype)
    # A network that is built from its configuration has default settings for generation, not those of the export.
    if network.can_generate() and (folder / "generation_config.json").is_file():
        network.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return network


def _head_map(folder: Path, manifest: Manifest, network: Any, family: Family) -> HeadMap:
    """Return the manifest's head map, checked against the configuration and the manifest's key/value index.

    Raises:
        ModelError: they do not fit each other.
    """
    sites = family.sites(network)
    rows = manifest.head_map
    # A layer without any head is refused, too: no export has one, and it could not be built.
    if [len(row) for row in rows] != [site.num_heads for site in sites] or any(max(row) < 0 for row in rows):
        raise ModelError(f"{str(folder)!r} is damaged: the head map of raysweep.json does not fit config.json.")
    head_map = HeadMap.from_lists(rows)
    if [key_value_index(site, head_map) for site in sites] != manifest.kv_index:
        raise ModelError(f"{str(folder)!r} is damaged: kv_index and head_map of raysweep.json contradict each other.")
    return head_map
