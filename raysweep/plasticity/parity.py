"""Check a wrapped network against itself before anything is pruned: the sites of its family, and causality."""

from __future__ import annotations

import torch

from raysweep.errors import ModelError
from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.model import PlasticModel
from raysweep.plasticity.surgery import absent_slices, snapshot, view_of, write_back


@torch.no_grad()
def check_parity(model: PlasticModel, tokens: torch.Tensor) -> None:
    """Check that open gates change nothing, that closed gates hide exactly the slices of their heads, and causality.

    Args:
        tokens: ids of shape (batch, tokens), at least 2 tokens.

    Raises:
        ModelError: logits differ by more than 1e-5, or a token sees a later one.
    """
    was_training = model.training
    model.eval()
    plain = model(tokens)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % plain.shape[-1]
    whole = HeadMap.full(*model.shape)
    gated, later = _logits(model, whole, tokens), _logits(model, whole, changed)
    some = _without_one_group_a_layer(model)
    slices = absent_slices(model.sites, some)
    held = snapshot(model, slices)
    closed = _logits(model, some, tokens)
    parameters = dict(model.network.named_parameters())
    for part in slices:
        view_of(parameters, part).zero_()
    removed = _logits(model, whole, tokens)
    write_back(model, slices, held)
    model.train(was_training)
    scale = max(1.0, float(plain.abs().max()))
    for first, second, fault in (
        (gated, plain, "open gates change the logits by {:.1e} (relative); the family's sites are wrong."),
        (closed, removed, "closed gates and removed heads differ by {:.1e} (relative); the family's sites are wrong."),
        (later[:, :-1], gated[:, :-1], "not causal: the last token changes earlier logits by {:.1e} (relative)."),
    ):
        difference = float((first - second).abs().max()) / scale
        if not difference <= 1e-5:
            raise ModelError(fault.format(difference))


def _logits(model: PlasticModel, head_map: HeadMap, tokens: torch.Tensor) -> torch.Tensor:
    gates = torch.from_numpy(head_map.present).to(tokens.device, torch.float32)
    with model.replaced_gates(list(gates)):
        return model(tokens)


def _without_one_group_a_layer(model: PlasticModel) -> HeadMap:
    """Return a map without the heads of one key/value head in each layer, another one from layer to layer."""
    return HeadMap.full(*model.shape).without(
        (site.layer, head)
        for site in model.sites
        for head in range(site.num_heads)
        if site.group_of(head) == site.layer % site.num_key_value_heads
    )
