"""What the present heads cost: parameters and forward floating-point operations."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.model import PlasticModel
from raysweep.plasticity.sites import HeadSlice
from raysweep.plasticity.surgery import absent_slices


def active_parameters(model: PlasticModel, head_map: HeadMap) -> int:
    """Return the number of parameters that compaction would keep; tied ones count once."""
    total = sum(parameter.numel() for parameter in model.network.parameters())
    return total - sum(_size(model, part) for part in absent_slices(model.sites, head_map))


def flops_per_token(model: PlasticModel, head_map: HeadMap, seq_len: int) -> float:
    """Return forward floating-point operations per token of a window, averaged over its tokens.

    Two per weight of every matrix product (the language-model head included), plus 4 * seq_len * head_dim for the two
    attention products of each present head, not halved for causality: what `torch.utils.flop_counter` counts.
    """
    flops = 2.0 * sum(_matrix_weights(module) for module in model.network.modules())
    for part in absent_slices(model.sites, head_map):
        if not part.parameter.endswith(".bias"):
            flops -= 2.0 * _size(model, part)
    head_dim = model.sites[0].head_dim
    return flops + 4.0 * seq_len * head_dim * head_map.active


def _matrix_weights(module: nn.Module) -> int:
    weight: Any = getattr(module, "weight", None)
    is_product = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    return weight.numel() if is_product else 0


def _size(model: PlasticModel, part: HeadSlice) -> int:
    shape = list(model.network.get_parameter(part.parameter).shape)
    shape[part.dim] = part.length
    return prod(shape)
