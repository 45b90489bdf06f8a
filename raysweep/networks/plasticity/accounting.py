"""Count what the present heads cost: parameters and forward floating-point operations (FLOPs)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import nn

from raysweep.contracts import HeadSlice
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.surgery import absent_slices

TRAINING_TO_FORWARD = 3
"""A training step costs a forward pass, and a backward pass of twice as much."""


def active_parameters(model: PlasticModel, head_map: HeadMap) -> int:
    """Return the number of parameters that compaction would keep; tied ones count once."""
    # `parameters()` yields a tied tensor once.
    total = sum(parameter.numel() for parameter in model.network.parameters())
    return total - sum(_size(model, part) for part in absent_slices(model.sites, head_map))


def positions(model: PlasticModel, seq_len: int) -> int:
    """Return the number of tokens of one example: the window's, or an image's patches plus its class token."""
    config: Any = model.network.config
    if getattr(config, "image_size", None) is None:
        return seq_len
    height, width = _sides(config.image_size)
    patch_height, patch_width = _sides(config.patch_size)
    return (height // patch_height) * (width // patch_width) + 1


def flops_per_token(
    model: PlasticModel, head_map: HeadMap, seq_len: int, *, predicted: float = 1.0, training: bool = False
) -> float:
    """Return forward FLOPs per token of a window, averaged over its tokens.

    Two per weight of every matrix product (the language-model head included), plus 4 * seq_len * head_dim for the two
    attention products of each present head, not halved for causality: what `torch.utils.flop_counter` counts. A module
    that a token passes through several times counts as often.

    Args:
        seq_len: tokens of an example, as `positions` returns them.
        predicted: share of the positions whose logits over the vocabulary are computed.
        training: count the forward pass of training, which may predict from several steps.
    """
    flops = 0.0
    for name, module in model.network.named_modules():
        # In training with labels at some positions, only those reach the vocabulary head.
        share = predicted if module is model.decoder else 1.0
        flops += 2 * share * uses(model, name, training) * _matrix_weights(name, module, seq_len)
    # Modules keep their full shapes while heads are masked; what compaction would remove is taken off here.
    # Biases are additions, which the counter of torch does not count either.
    for part in absent_slices(model.sites, head_map):
        if not part.parameter.endswith(".bias"):
            flops -= 2 * seq_len * uses(model, part.parameter, training) * _size(model, part)
    # Two attention products (scores and mixing), each 2 FLOPs a multiply-add over seq_len keys: 4 * seq_len *
    # head_dim. The name of the output weight tells how often the layer is used.
    attended = sum(
        uses(model, site.output[0][0], training) * int(present.sum())
        for site, present in zip(model.sites, head_map.present, strict=True)
    )
    return flops / seq_len + 4 * seq_len * model.sites[0].head_dim * attended


def uses(model: PlasticModel, name: str, training: bool) -> int:
    """Return how often a token passes through a module or parameter in one forward pass; more than once in a PNN."""
    network: Any = model.network
    return int(network.uses(name, training=training)) if hasattr(network, "uses") else 1


def _matrix_weights(name: str, module: nn.Module, seq_len: int) -> int:
    """Return the multiply-adds of a module's matrix product for one example; 0 if it has none."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Conv2d):
        # One product for each patch; the class token is no patch.
        return weight.numel() * (seq_len - 1)
    if not (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
        return 0
    # A classifier, and the pooler below it, sees the first token of each example alone.
    alone = not {"classifier", "pooler"}.isdisjoint(name.split("."))
    return weight.numel() * (1 if alone else seq_len)


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _size(model: PlasticModel, part: HeadSlice) -> int:
    shape = list(model.network.get_parameter(part.parameter).shape)
    shape[part.dim] = part.length
    return prod(shape)
