"""How large a head's weights are, in three forms; no data is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from raysweep.contracts import Array
from raysweep.plasticity.model import PlasticModel
from raysweep.plasticity.sites import AttentionSite, HeadSlice, Role


@torch.no_grad()
def magnitudes(model: PlasticModel) -> dict[str, Array]:
    """Return the Frobenius norms of every head slot, [layers][heads], in float64 (heads.md 2.2).

    `raw` is that of the head's own slices, biases included; keys and values that several heads share are none's own.
    It changes when a head is rewritten as (W_V R, R^-1 W_O), which leaves its function alone. `ov` = |W_V W_O| and
    `qk` = |W_Q W_K^T| do not; there, shared keys and values count for each of their heads. Biases, rotary positions,
    the scale of the scores and the gain of the layer's input norm are left out.
    """
    parameters = dict(model.network.named_parameters())
    forms = {"raw": _raw, "ov": _ov, "qk": _qk}
    return {
        name: np.array([[form(parameters, site, head) for head in range(site.num_heads)] for site in model.sites])
        for name, form in forms.items()
    }


Parameters = dict[str, torch.nn.Parameter]


def _raw(parameters: Parameters, site: AttentionSite, head: int) -> float:
    parts = (parameters[p.parameter].narrow(p.dim, p.start, p.length) for p in site.head_slices(head))
    return sum(float(part.double().square().sum()) for part in parts) ** 0.5


def _ov(parameters: Parameters, site: AttentionSite, head: int) -> float:
    return _product_norm(*(_matrix(parameters, _slices(site, head), role) for role in ("value", "output")))


def _qk(parameters: Parameters, site: AttentionSite, head: int) -> float:
    return _product_norm(*(_matrix(parameters, _slices(site, head), role) for role in ("query", "key")))


def _product_norm(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return |A B^T| of two (width, head_dim) matrices, without the (width, width) product."""
    squared = ((first.T @ first) * (second.T @ second)).sum()  # tr(A^T A B^T B)
    return float(squared.clamp_min(0).sqrt())


def _slices(site: AttentionSite, head: int) -> list[HeadSlice]:
    own = site.head_slices(head)
    return own + site.group_slices(site.group_of(head)) if site.grouped else own


def _matrix(parameters: Parameters, slices: Sequence[HeadSlice], role: Role) -> torch.Tensor:
    """Return the weights of one role as (width, head_dim), whichever way the layer stores them."""
    (part,) = (p for p in slices if p.role == role and parameters[p.parameter].dim() == 2)
    return parameters[part.parameter].narrow(part.dim, part.start, part.length).movedim(part.dim, -1).double()
