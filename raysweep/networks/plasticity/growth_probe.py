"""GradMax: which directions of a layer's input the values of a new head should read, and how much it gains by them.

For a head with uniform attention A, value weights W_V and zero output weights, the gradient of the output weights is
W_V M^T with M = sum_t delta_t (A x)_t^T, delta the loss gradient at the layer's attention output and x the attention's
input (Evci et al. 2022, arXiv 2201.05125, section 3.2). Its squared norm for rows of unit length is at most the sum of
the head_dim largest squared singular values of M; the rows that reach it are the right-singular vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Array, AttentionSite, Batch, HeadSlice
from raysweep.errors import TrialError
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import example_losses, losses_of
from raysweep.networks.plasticity.probe import AllReduce
from raysweep.networks.plasticity.surgery import view_of


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Candidate value directions of one layer, best first, float64."""

    vectors: torch.Tensor
    """Right-singular vectors of M as rows, (number, width)."""
    gains: torch.Tensor
    """Squared singular values, (number,)."""


def value_directions(
    model: PlasticModel, batches: Sequence[Batch], head_map: HeadMap, all_reduce: AllReduce, *, causal: bool
) -> list[Directions]:
    """Return the directions of each layer. Weights, gradients and the training mode are left as they were.

    M is the mean over the windows of all batches of all ranks, taken before the decomposition: singular vectors of
    parts cannot be averaged.

    Args:
        batches: this rank's; ranks may have different numbers.
        all_reduce: sums a float64 tensor over ranks.
        causal: position t attends to positions up to t only.
    """
    sums, windows = _gradient_sums(model, batches, head_map, causal)
    count = all_reduce(torch.tensor([windows], dtype=torch.float64, device=sums[0].device))
    found = []
    for total in sums:
        # The decomposition runs on the CPU in float64, so every rank gets the same vectors from the same sum.
        matrix = (all_reduce(total) / count).cpu()
        _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
        found.append(Directions(vectors=vectors, gains=values.square()))
    return found


def gradmax_scores(model: PlasticModel, head_map: HeadMap, directions: Sequence[Directions]) -> Array:
    """Return the largest squared norm of dL/dW_O that each absent slot can get, [layers][heads]; 0 for present ones.

    The j-th absent value of a layer is scored by the j-th block of directions, or 0 where no block is left. A head
    whose key/value group is present cannot choose its values: it gets |W_V M^T|^2 for the group's own, scaled to rows
    of mean length 1 (bias left out).
    """
    scores = np.zeros(model.shape)
    for site, found in zip(model.sites, directions, strict=True):
        present = head_map.present[site.layer]
        living = {site.group_of(head) for head in range(site.num_heads) if present[head]}
        # Without sharing every absent head is a group of its own; with it, the heads of one absent group share
        # a block.
        gone = sorted(set(range(site.num_key_value_heads)) - living)
        gains = {group: _block_gain(found, block, site) for block, group in enumerate(gone)}
        gains |= {group: _gain_of_living(model, site, group, found) for group in living if site.grouped}
        for head in np.flatnonzero(~present):
            scores[site.layer, head] = gains[site.group_of(int(head))]
    return scores


def block_of(directions: Directions, block: int, site: AttentionSite) -> torch.Tensor:
    """Return the block-th head_dim directions, (head_dim, width).

    Raises:
        TrialError: there are not enough directions for that many blocks.
    """
    rows = directions.vectors[block * site.head_dim : (block + 1) * site.head_dim]
    if len(rows) < site.head_dim:
        raise TrialError(
            f"layer {site.layer} has {len(directions.vectors)} directions, not enough for {block + 1} new values of "
            f"{site.head_dim}. Grow fewer heads there, or use another cycle.grow.init."
        )
    return rows


def mean_row_norm(model: PlasticModel, site: AttentionSite, head_map: HeadMap) -> float:
    """Return the mean norm of the rows of a layer's present value weights.

    Raises:
        TrialError: the layer has no present head.
    """
    present = head_map.present[site.layer]
    groups = sorted({site.group_of(head) for head in range(site.num_heads) if present[head]})
    if not groups:
        raise TrialError(f"layer {site.layer} has no present head to take the scale of values from.")
    return float(torch.cat([_value_weights(model, site, group).norm(dim=1) for group in groups]).mean())


def uniform_attention(inputs: torch.Tensor, attention_mask: torch.Tensor | None, *, causal: bool) -> torch.Tensor:
    """Return for each position the mean input of all positions that it sees: attention with equal weights.

    Args:
        inputs: (batch, positions, width).
        attention_mask: (batch, positions), 0 at padding, which no position sees.
    """
    seen = torch.ones(inputs.shape[:2]) if attention_mask is None else attention_mask
    seen = seen.to(inputs.device, inputs.dtype).unsqueeze(-1)
    weighted = inputs * seen
    if causal:
        # Positions before the first real token see nothing; dividing by 1 gives 0 there instead of NaN.
        return weighted.cumsum(1) / seen.cumsum(1).clamp_min(1)
    return (weighted.sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1)).expand_as(inputs)


def _gradient_sums(
    model: PlasticModel, batches: Sequence[Batch], head_map: HeadMap, causal: bool
) -> tuple[list[torch.Tensor], int]:
    recorders = [_Recorder(model, site, causal) for site in model.sites]
    present = torch.from_numpy(head_map.present)
    with model.measuring(), ExitStack() as hooks:
        for recorder in recorders:
            hooks.enter_context(recorder.attached())
        for batch in batches:
            # The gates' gradients are not used. Parameters are frozen, so only gates that require gradients make the
            # layers' outputs part of a graph, and the hooks on those outputs do the work.
            gates = [row.to(batch.inputs.device, torch.float32).requires_grad_() for row in present]
            for recorder in recorders:
                recorder.attention_mask = batch.attention_mask
            with model.replaced_gates(gates):
                losses = example_losses(losses_of(model, batch), batch.labels)
            torch.autograd.grad(losses.sum(), gates)
    return [recorder.total for recorder in recorders], sum(len(batch.inputs) for batch in batches)


class _Recorder:
    """Sum of delta_t (A x)_t^T over one layer's positions, (output width, input width)."""

    def __init__(self, model: PlasticModel, site: AttentionSite, causal: bool) -> None:
        self.site = site
        self.causal = causal
        self.attention_mask: torch.Tensor | None = None
        (value, value_dim, _), (output, output_dim, _) = site.value[0], site.output[0]
        read, written = model.network.get_parameter(value), model.network.get_parameter(output)
        # Layouts differ: the dimension that does not run along heads is the width, in W_O (output) and W_V
        # (input).
        shape = written.shape[1 - output_dim], read.shape[1 - value_dim]
        self.total = torch.zeros(shape, dtype=torch.float64, device=read.device)

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [
            self.site.attention.register_forward_pre_hook(self._on_input, with_kwargs=True),
            self.site.projection.register_forward_hook(self._on_output),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_input(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else kwargs["hidden_states"]
        self._seen = uniform_attention(inputs.detach().double(), self.attention_mask, causal=self.causal)

    def _on_output(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        # Bound now: a layer that serves at several steps replaces `_seen` before the backward pass reaches this
        # step.
        seen = self._seen
        output.register_hook(lambda delta: self._add(delta, seen))

    def _add(self, delta: torch.Tensor, seen: torch.Tensor) -> None:
        self.total += delta.double().flatten(0, 1).T @ seen.flatten(0, 1)


def _value_weights(model: PlasticModel, site: AttentionSite, group: int) -> torch.Tensor:
    """Return W_V of one key/value head, (head_dim, width), float64."""
    parameters = dict(model.network.named_parameters())
    parts: list[HeadSlice] = [part for part in site.group_slices(group) if part.role == "value"]
    # A value has a matrix and perhaps a bias; only the matrix reads directions.
    (weights,) = (view_of(parameters, p).movedim(p.dim, 0) for p in parts if parameters[p.parameter].dim() == 2)
    return weights.double().cpu()


def _block_gain(directions: Directions, block: int, site: AttentionSite) -> float:
    gains = directions.gains[block * site.head_dim : (block + 1) * site.head_dim]
    return float(gains.sum()) if len(gains) == site.head_dim else 0.0


def _gain_of_living(model: PlasticModel, site: AttentionSite, group: int, found: Directions) -> float:
    weights = _value_weights(model, site, group)
    # |W_V M^T|^2 from the decomposition of M: its singular values scale the components along its right-singular
    # vectors.
    along = (weights / weights.norm(dim=1).mean()) @ found.vectors.T
    return float((along.square() * found.gains).sum())
