"""Measure the norms of heads' weights in three forms; no data is needed."""

from __future__ import annotations

from collections.abc import Mapping

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
    found = [_of_layer(parameters, site) for site in model.sites]
    return {form: np.array([norms[form] for norms in found]) for form in ("raw", "ov", "qk")}


def _of_layer(parameters: Mapping[str, torch.Tensor], site: AttentionSite) -> dict[str, list[float]]:
    """Return each form's norms of one layer's heads."""
    weights = _weights(parameters, site)
    # The gain of the norm in front multiplies the input of the heads, which is the rows of (width, head_dim).
    gain = 1.0 if site.gain is None else parameters[site.gain].double()[:, None]
    squares = {
        "raw": sum(matrices.square().sum(dim=(1, 2)) for matrices in weights.values()),
        "ov": _squared_product(gain * weights["value"], weights["output"]),
        "qk": _squared_product(gain * weights["query"], gain * weights["key"]),
    }
    # Rounding may leave a tiny negative number.
    return {form: torch.as_tensor(squared).clamp_min(0).sqrt().tolist() for form, squared in squares.items()}


def _squared_product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return |A B^T|^2 of each head, from two (heads, width, head_dim), without the (width, width) product."""
    # |A B^T|^2 = tr(A^T A B^T B): two (head_dim, head_dim) Gram matrices.
    return ((first.mT @ first) * (second.mT @ second)).sum(dim=(1, 2))


def _weights(parameters: Mapping[str, torch.Tensor], site: AttentionSite) -> dict[Role, torch.Tensor]:
    """Return the weights of each role as (heads, width, head_dim), whichever way the layer stores them, in float64."""
    found: dict[Role, list[torch.Tensor]] = {"query": [], "key": [], "value": [], "output": []}
    for head in range(site.num_heads):
        # Under grouped queries, a head's key and value are those of its group.
        for part in site.head_slices(head) + (site.group_slices(site.group_of(head)) if site.grouped else []):
            whole = parameters[part.parameter]
            if whole.dim() == 2:
                found[part.role].append(whole.narrow(part.dim, part.start, part.length).movedim(part.dim, -1))
    return {role: torch.stack(matrices).double() for role, matrices in found.items()}
