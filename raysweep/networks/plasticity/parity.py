"""Check a wrapped network against itself before anything is pruned: its family's sites, and causality."""

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
        causal: also check that no token changes earlier logits; windows need at least 2 tokens for that.

    Raises:
        ModelError: logits differ by more than 1e-5, or a token sees a later one.
    """
    with model.evaluating():
        plain = logits_of(model, batch)
        gated = _logits(model, HeadMap.full(*model.shape), batch)
        closed, removed = _closed_and_removed(model, batch)
        wrong = "by {:.1e} (relative); the family's sites are wrong."
        pairs = [
            (gated, plain, f"open gates change the logits {wrong}"),
            (closed, removed, f"closed gates and removed heads differ {wrong}"),
        ]
        if causal:
            later = _with_another_last_token(model, batch, vocab_size=plain.shape[-1])
            fault = "not causal: the last token changes earlier logits by {:.1e} (relative)."
            # The last position may differ: it reads the changed token itself.
            pairs.append((later[:, :-1], gated[:, :-1], fault))
    # Relative to the largest logit, as rounding is; small logits are not held to more than 1e-5 in absolute terms.
    scale = max(1.0, float(plain.abs().max()))
    for first, second, fault in pairs:
        difference = float((first - second).abs().max()) / scale
        # Written with `not` so that NaN fails, too.
        if not difference <= 1e-5:
            raise ModelError(fault.format(difference))


def _closed_and_removed(model: PlasticModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits with some heads masked by gates, and with the slices of the same heads set to zero."""
    some = _without_one_group_a_layer(model)
    slices = absent_slices(model.sites, some)
    held = snapshot(model, slices)
    closed = _logits(model, some, batch)
    parameters = dict(model.network.named_parameters())
    for part in slices:
        view_of(parameters, part).zero_()
    # All gates are open here: only the zeros hide the heads. A family with a wrong slice hides something else.
    removed = _logits(model, HeadMap.full(*model.shape), batch)
    write_back(model, slices, held)
    return closed, removed


def _with_another_last_token(model: PlasticModel, batch: Batch, *, vocab_size: int) -> torch.Tensor:
    changed = batch.inputs.clone()
    # Any other valid token will do; the modulo keeps the id inside the vocabulary.
    changed[:, -1] = (changed[:, -1] + 1) % vocab_size
    return _logits(model, HeadMap.full(*model.shape), replace(batch, inputs=changed))


def _logits(model: PlasticModel, head_map: HeadMap, batch: Batch) -> torch.Tensor:
    with model.masked(head_map):
        return logits_of(model, batch)


def _without_one_group_a_layer(model: PlasticModel) -> HeadMap:
    """Return a map without the heads of one key/value head in each layer, another one from layer to layer.

    Whole groups, because a shared key or value is removed only together with all its query heads; another group in each
    layer, so that slices of a wrong head or layer are noticed.
    """
    return HeadMap.full(*model.shape).without(
        (site.layer, head)
        for site in model.sites
        for head in range(site.num_heads)
        if site.group_of(head) == site.layer % site.num_key_value_heads
    )
