"""Remove absent heads physically (compact), and restore the full shape (densify); neither changes the function.

The output bias stays as it is: a head's contribution, value bias included, is computed from its own slices alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from raysweep.contracts import AttentionSite, Family
from raysweep.errors import ModelError
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.ragged import RAGGED, look_up_keys
from raysweep.networks.plasticity.surgery import absent_slices

Tensors = Mapping[str, torch.Tensor]
Kept = dict[str, tuple[int, torch.Tensor]]
"""Parameter -> (dim, indices along it that are kept); parameters that are kept whole are left out."""


def compact(network: Any, family: Family, head_map: HeadMap) -> Any:
    """Return a new network without the absent heads; the gates of the old one play no part.

    Its logits equal those of the masked network to 1e-12 in fp64 and 1e-5 in fp32: sums are taken in another order.

    Raises:
        ModelError: a layer has no head left, or the map is of another shape.
    """
    # A new network in the precision of the old one; then its shapes shrink, and only then weights are loaded.
    # The old network, its optimizer and any DDP wrapper around it stay valid.
    smaller = unloaded(type(network), network.config, network.dtype)
    shrink(smaller, family, head_map)
    smaller.load_state_dict(compact_tensors(network.state_dict(), family, network, head_map))
    return smaller.to(network.device).train(network.training)


def densify(network: Any, family: Family, head_map: HeadMap) -> Any:
    """Return a network of the full shape: slices of absent heads are zero, those of present ones bit-identical.

    Args:
        network: what `compact` made with the same head map.
    """
    whole = unloaded(type(network), network.config, network.dtype)
    kept = _kept(family.sites(whole), head_map, whole.state_dict())
    tensors = {}
    for name, tensor in network.state_dict().items():
        if name in kept:
            dim, indices = kept[name]
            # Zeros and not random weights: with W_O of an absent head zero, stock code computes the compact
            # function.
            tensor = torch.zeros_like(whole.get_parameter(name), device="cpu").index_copy_(dim, indices, tensor.cpu())
        tensors[name] = tensor
    whole.load_state_dict(tensors)
    return whole.to(network.device).train(network.training)


def compact_tensors(tensors: Tensors, family: Family, whole: nn.Module, head_map: HeadMap) -> dict[str, torch.Tensor]:
    """Return copies of tensors without the slices of absent heads.

    Args:
        tensors: by parameter, or by `<parameter>/<moment>` as an optimizer's state; scalars are copied whole.
        whole: a network of the full shape, which tells where its heads live.
    """
    kept = _kept(family.sites(whole), head_map, dict(whole.named_parameters()))
    # Moments have the shape of their parameter, so the same indices serve; the part before the slash names it.
    return {name: _without_absent(tensor, kept.get(name.partition("/")[0])) for name, tensor in tensors.items()}


def shrink(network: Any, family: Family, head_map: HeadMap) -> None:
    """Shrink the weights to the present heads, in place; their values are left over and still to be loaded.

    Raises:
        ModelError: a layer has no head left, or the map is of another shape.
    """
    sites = family.sites(network)
    _check(sites, head_map)
    for name, (dim, indices) in _kept(sites, head_map, dict(network.named_parameters())).items():
        module = network.get_submodule(name.rpartition(".")[0])
        parameter = network.get_parameter(name)
        smaller = nn.Parameter(parameter.detach().index_select(dim, indices), requires_grad=parameter.requires_grad)
        setattr(module, name.rpartition(".")[2], smaller)
        _declare_shape(module)
    for site in sites:
        index = key_value_index(site, head_map)
        family.resize(site.attention, int(head_map.present[site.layer].sum()), _repeated_equally(site, head_map))
        if index is not None:
            look_up_keys(site.attention, index)
            network.set_attn_implementation(RAGGED)


def key_value_index(site: AttentionSite, head_map: HeadMap) -> list[int] | None:
    """Return the remaining key/value head of each remaining query head; None where stock code finds it itself."""
    groups = _groups(site, head_map)
    # Stock code repeats every key/value head equally often. That is right only if all groups kept equally many
    # query heads; otherwise it pairs heads wrongly without an error (heads.md 3.7).
    if len(set(Counter(groups).values())) == 1:
        return None
    remaining = sorted(set(groups))
    return [remaining.index(group) for group in groups]


def unloaded(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    """Build a network on the CPU whose weights are still to be loaded; the global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        return model_class._from_config(copy.deepcopy(config), attn_implementation="sdpa", dtype=dtype)


def _repeated_equally(site: AttentionSite, head_map: HeadMap) -> int:
    """Return the number of key/value heads that the attention function sees: gathered ones count for each use."""
    groups = _groups(site, head_map)
    return len(set(groups)) if key_value_index(site, head_map) is None else len(groups)


def _groups(site: AttentionSite, head_map: HeadMap) -> list[int]:
    return [site.group_of(int(head)) for head in np.flatnonzero(head_map.present[site.layer])]


def _kept(sites: list[AttentionSite], head_map: HeadMap, shapes: Tensors) -> Kept:
    stays: dict[str, tuple[int, torch.Tensor]] = {}
    for part in absent_slices(sites, head_map):
        size = shapes[part.parameter].shape[part.dim]
        # All roles of a fused parameter write into one mask, so it is cut once.
        _, mask = stays.setdefault(part.parameter, (part.dim, torch.ones(size, dtype=torch.bool)))
        mask[part.start : part.start + part.length] = False
    return {name: (dim, mask.nonzero().flatten()) for name, (dim, mask) in stays.items()}


def _without_absent(tensor: torch.Tensor, kept: tuple[int, torch.Tensor] | None) -> torch.Tensor:
    if kept is None or tensor.dim() == 0:
        return tensor.detach().clone()
    dim, indices = kept
    return tensor.detach().index_select(dim, indices.to(tensor.device))


def _declare_shape(module: Any) -> None:
    """Set the sizes that a projection states to those of its weight."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    else:
        # transformers' Conv1D stores its weight as (in, out).
        module.nx, module.nf = module.weight.shape


def _check(sites: list[AttentionSite], head_map: HeadMap) -> None:
    shape = (len(sites), sites[0].num_heads)
    if head_map.grown.shape != shape:
        raise ModelError(f"the head map is of shape {head_map.grown.shape}, but the network has {shape} heads.")
    empty = [site.layer for site in sites if not head_map.present[site.layer].any()]
    if empty:
        raise ModelError(f"layer {empty[0]} has no head left; a compact network keeps at least one in each layer.")
