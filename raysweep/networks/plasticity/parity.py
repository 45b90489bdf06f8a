"""Check a wrapped network against itself before anything is pruned: the sites of its family, and causality."""

from __future__ import annotations

from dataclasses import replace

import torch

from raysweep.contracts import Batch
from raysweep.errors import ModelError
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of
from raysweep.networks.plasticity.surgery import absent_slices, snapshot, view_of, write_back


@torch.no_grad()
def check_parity(model: PlasticModel, batch: Batch, *, causal: bool) -> None:
    """Check that open gates change nothing, and that closed gates hide exactly the slices of their heads.

    Args:
        causal: check too that no token changes earlier logits; windows then have 2 tokens at least.

    Raises:
        ModelError: logits differ by more than 1e-5, or a token sees a later one.
    """
    was_training = model.training
    model.eval()
    plain = logits_of(model, batch)
    whole = HeadMap.full(*model.shape)
    gated = _logits(model, whole, batch)
    some = _without_one_group_a_layer(model)
    slices = absent_slices(model.sites, some)
    held = snapshot(model, slices)
    closed = _logits(model, some, batch)
    parameters = dict(model.network.named_parameters())
    for part in slices:
        view_of(parameters, part).zero_()
    removed = _logits(model, whole, batch)
    write_back(model, slices, held)
    pairs = [
        (gated, plain, "open gates change the logits by {:.1e} (relative); the family's sites are wrong."),
        (closed, removed, "closed gates and removed heads differ by {:.1e} (relative); the family's sites are wrong."),
    ]
    if causal:
        changed = batch.inputs.clone()
        changed[:, -1] = (changed[:, -1] + 1) % plain.shape[-1]
        later = _logits(model, whole, replace(batch, inputs=changed))
        fault = "not causal: the last token changes earlier logits by {:.1e} (relative)."
        pairs.append((later[:, :-1], gated[:, :-1], fault))
    model.train(was_training)
    scale = max(1.0, float(plain.abs().max()))
    for first, second, fault in pairs:
        difference = float((first - second).abs().max()) / scale
        if not difference <= 1e-5:
            raise ModelError(fault.format(difference))


def _logits(model: PlasticModel, head_map: HeadMap, batch: Batch) -> torch.Tensor:
    gates = torch.from_numpy(head_map.present).to(batch.inputs.device, torch.float32)
    with model.replaced_gates(list(gates)):
        return logits_of(model, batch)


def _without_one_group_a_layer(model: PlasticModel) -> HeadMap:
    """Return a map without the heads of one key/value head in each layer, another one from layer to layer."""
    return HeadMap.full(*model.shape).without(
        (site.layer, head)
        for site in model.sites
        for head in range(site.num_heads)
        if site.group_of(head) == site.layer % site.num_key_value_heads
    )
