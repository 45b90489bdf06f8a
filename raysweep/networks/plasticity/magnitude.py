"""Measure the norms of heads' weights in three forms; no data is needed."""

from __future__ import annotations

import numpy as np
import torch

from raysweep.contracts import Array, AttentionSite, Role
from raysweep.networks.plasticity.model import PlasticModel


@torch.no_grad()
def magnitudes(model: PlasticModel) -> dict[str, Array]:
    """Return the Frobenius norms of every head slot, [layers][heads], in float64 (heads.md 2.2).

    `raw` is |[W_Q, W_K, W_V, W_O^T]|; it changes when a head is rewritten as (W_V R, R^-1 W_O), which leaves its
    function alone. `ov` = |diag(g) W_V W_O| and `qk` = |diag(g) W_Q W_K^T diag(g)| do not, nor when the gain g of the
    layer's norm in front of its heads moves into the weights; where a network normalises behind its heads instead, as
    BERT does, g = 1. Keys and values that several heads share count for each of them. Biases, rotary positions, norms
    of queries and keys, and the scale of the scores are left out.
    """
    parameters = dict(model.network.named_parameters())
    forms = {"raw": _raw, "ov": _ov, "qk": _qk}
    return {
        name: np.array([[form(parameters, site, head) for head in range(site.num_heads)] for site in model.sites])
        for name, form in forms.items()
    }


Parameters = dict[str, torch.nn.Parameter]


def _raw(parameters: Parameters, site: AttentionSite, head: int) -> float:
    roles: tuple[Role, ...] = ("query", "key", "value", "output")
    return sum(float(_matrix(parameters, site, head, role).square().sum()) for role in roles) ** 0.5


def _ov(parameters: Parameters, site: AttentionSite, head: int) -> float:
    value, output = (_matrix(parameters, site, head, role) for role in ("value", "output"))
    return _product_norm(_gained(parameters, site, value), output)


def _qk(parameters: Parameters, site: AttentionSite, head: int) -> float:
    query, key = (_matrix(parameters, site, head, role) for role in ("query", "key"))
    return _product_norm(_gained(parameters, site, query), _gained(parameters, site, key))


def _product_norm(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return |A B^T| for two (width, head_dim) matrices, without the (width, width) product."""
    # |A B^T|^2 = tr(A^T A B^T B): two (head_dim, head_dim) Gram matrices. Rounding may leave a tiny negative number.
    squared = ((first.T @ first) * (second.T @ second)).sum()
    return float(squared.clamp_min(0).sqrt())


def _gained(parameters: Parameters, site: AttentionSite, matrix: torch.Tensor) -> torch.Tensor:
    # The gain of the norm in front multiplies the input of the heads, which is the rows of (width, head_dim).
    return matrix if site.gain is None else parameters[site.gain].double()[:, None] * matrix


def _matrix(parameters: Parameters, site: AttentionSite, head: int, role: Role) -> torch.Tensor:
    """Return the weights of one role as (width, head_dim), whichever way the layer stores them."""
    # Under grouped queries, a head's key and value are those of its group.
    slices = site.head_slices(head) + (site.group_slices(site.group_of(head)) if site.grouped else [])
    (part,) = (p for p in slices if p.role == role and parameters[p.parameter].dim() == 2)
    return parameters[part.parameter].narrow(part.dim, part.start, part.length).movedim(part.dim, -1).double()
