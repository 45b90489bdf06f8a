"""Find new heads that cannot learn: where all gradients of a head are exactly zero, they stay zero for ever."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raysweep.contracts import Batch, Slot
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import losses_of, mean_loss
from raysweep.networks.plasticity.probe import AllReduce


def dead_heads(
    model: PlasticModel, batches: Sequence[Batch], head_map: HeadMap, slots: Sequence[Slot], all_reduce: AllReduce
) -> list[Slot]:
    """Return the heads among `slots` whose own weights all have a gradient of exactly zero, with open gates.

    Args:
        batches: this rank's; the first one of each rank is used.
        all_reduce: sums a float64 tensor over ranks.
    """
    device = next(model.parameters()).device
    alive = torch.zeros(len(slots), dtype=torch.float64, device=device)
    # A head is alive if any of its tensors has a gradient: with zero output weights only these have one at first, and
    # queries, keys and values follow from the second step on (heads.md 2.7).
    if batches and slots:
        gradients = _gradients(model, batches[0], head_map)
        for index, (layer, head) in enumerate(slots):
            parts = model.sites[layer].head_slices(head)
            alive[index] = any(
                bool(gradients[p.parameter].narrow(p.dim, p.start, p.length).any())
                for p in parts if p.parameter in gradients
            )  # fmt: skip
    # Summed over ranks: a head is dead only if no rank's batch reaches it, and all ranks must agree.
    return [slot for slot, count in zip(slots, all_reduce(alive).tolist(), strict=True) if not count]


def _gradients(model: PlasticModel, batch: Batch, head_map: HeadMap) -> dict[str, torch.Tensor]:
    """Return the loss gradients of all parameters that heads live in; `.grad` stays as it is."""
    names = {name for site in model.sites for name, *_ in (*site.query, *site.key, *site.value, *site.output)}
    parameters = {name: parameter for name, parameter in model.network.named_parameters() if name in names}
    with model.evaluating():
        with model.masked(head_map):
            loss = mean_loss(losses_of(model, batch), batch.labels)
        # `grad` instead of `backward`: nothing is added to `.grad`, so the next training step does not see this
        # pass. Parameters that the loss does not reach have no gradient; their heads count as dead.
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}
