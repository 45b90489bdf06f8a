"""Measure all head statistics in one forward and backward pass over fixed windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from raysweep.contracts import Array, AttentionSite, Batch, HeadStatistics
from raysweep.errors import ModelError
from raysweep.networks.plasticity.attention_statistics import attention_statistics, watched_attention
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.magnitude import magnitudes
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import example_losses, losses_of

AllReduce = Callable[[torch.Tensor], torch.Tensor]
COUNTED_BY: dict[str, str] = {
    field.name: field.metadata["mean_over"] for field in fields(HeadStatistics) if "mean_over" in field.metadata
}
"""Statistics that are means -> the count that each is divided by."""
SUMS = (*COUNTED_BY, "windows", "queries", "sink_free_queries", "tokens")


def probe(
    model: PlasticModel,
    batches: Sequence[Batch],
    head_map: HeadMap,
    all_reduce: AllReduce,
    *,
    reference_entropy: Array | None = None,
    sensitivity: Literal["gate", "output"] | None = None,
) -> HeadStatistics:
    """Measure every head slot. Weights, gradients, generators and the training mode are left as they were.

    Absent slots are measured behind their closed gates, with the weights that they hold.

    Args:
        batches: this rank's batches; ranks may have different numbers.
        all_reduce: sums a float64 tensor over ranks.
        sensitivity: also measure absent slots' sensitivity: `gate` is E|dL/dgate| at a closed gate; `output` the
            entrywise l1 norm of E dL/dW_O, which is what the first Adam step can use when W_O is zero
            (RigL, Evci et al. 2020, section 3, for heads).
    """
    recorders = _measured(model, batches, head_map, want_output_gradient=sensitivity == "output")
    device = next(model.parameters()).device
    sums = all_reduce(torch.stack([recorder.sums for recorder in recorders]).to(device)).cpu().numpy()
    found = dict(zip(SUMS, sums.transpose(1, 0, 2), strict=True))
    # Sums are reduced first and divided once: ranks may have different numbers of windows, and the mean of their
    # means would weigh them wrongly. Where nothing was counted, as in windows of two tokens, the mean is NaN.
    with np.errstate(invalid="ignore"):
        means = {name: found[name] / found[count] for name, count in COUNTED_BY.items()}
    norms = magnitudes(model)
    return HeadStatistics(
        present=head_map.present,
        magnitude=norms["raw"],
        magnitude_ov=norms["ov"],
        magnitude_qk=norms["qk"],
        reference_entropy=reference_entropy,
        sensitivity=_sensitivities(sensitivity, means, recorders, found["windows"], all_reduce),
        **means,
    )


def _sensitivities(
    form: Literal["gate", "output"] | None, means: dict[str, Array], recorders: Sequence[_SiteRecorder],
    windows: Array, all_reduce: AllReduce,
) -> Array | None:  # fmt: skip
    if form is None:
        return None
    if form == "gate":
        # Behind a closed gate, E|dL/dgate| is the sensitivity already.
        return means["taylor"]
    # The norm is taken after the sum over ranks: gradients of different windows may cancel.
    gradients = [_l1(all_reduce(recorder.gradient()), recorder.site.num_heads) for recorder in recorders]
    return np.stack(gradients) / windows


def _measured(
    model: PlasticModel, batches: Sequence[Batch], head_map: HeadMap, *, want_output_gradient: bool
) -> list[_SiteRecorder]:
    """Run all batches with a recorder on every layer; return the recorders with this rank's sums."""
    recorders = [_SiteRecorder(site, want_output_gradient=want_output_gradient) for site in model.sites]
    watchers = {recorder.site.attention: recorder.watch for recorder in recorders}
    with model.measuring(), watched_attention(model.network, watchers), ExitStack() as hooks:
        for recorder in recorders:
            hooks.enter_context(recorder.attached())
        for batch in batches:
            _measure(model, batch, head_map, recorders)
    return recorders


class _SiteRecorder:
    """Sums of one layer's statistics in float64: a row for each name in SUMS, a column for each head."""

    def __init__(self, site: AttentionSite, *, want_output_gradient: bool) -> None:
        self.site = site
        self.sums = torch.zeros(len(SUMS), site.num_heads, dtype=torch.float64)
        self.real: torch.Tensor | None = None
        """(batch, tokens), False at padding, for the current batch; None: nothing is padded."""
        self._want_output_gradient = want_output_gradient
        self._output_gradient: torch.Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [
            self.site.projection.register_forward_hook(self._on_projection),
            # `prepend`: before the hook of the gate multiplies, because statistics describe the head and not its
            # gate. Behind a closed gate they would all be zero.
            self.site.projection.register_forward_pre_hook(self._on_head_outputs, prepend=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gradient(self) -> torch.Tensor:
        """Return the summed gradient of the output weights, (heads * head_dim, width), zero without windows."""
        if self._output_gradient is not None:
            return self._output_gradient
        # A rank without windows has recorded nothing but must still take part in the all-reduce.
        weight = _output_weight(self.site)
        # Not zeros_like: the weight may be a transposed view, and collectives need contiguous tensors.
        return torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)

    def add_gate_gradients(self, gradient: torch.Tensor) -> None:
        """Add per-window gate gradients of shape (batch, 1, heads)."""
        # Absolute values and squares are taken for each window, before the sum: windows of opposite sign must
        # not cancel (heads.md 2.3: |mean g| is not mean |g|).
        gradient = gradient.squeeze(1).double()
        self._add("taylor", gradient.abs().sum(0))
        self._add("fisher", gradient.square().sum(0))
        self._add("signed_taylor", -gradient.sum(0))
        self._add("windows", gradient.shape[0])

    def watch(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, causal: bool
    ) -> None:
        # `argmax` of booleans is the position of the first real token: with padding on the left, the sink is
        # there.
        batch, _, queries, _ = query.shape
        real = torch.ones(batch, queries, dtype=torch.bool, device=query.device) if self.real is None else self.real
        found = attention_statistics(
            query, key, mask, scaling=scaling, causal=causal, first=real.long().argmax(1)
        )  # fmt: skip
        # Entropy needs two visible keys, and without the sink two others; padded queries count for nothing.
        counted, without_sink = ((keys >= 2) & real[:, None] for keys in (found.visible, found.others))
        # A query that does not see the first token (padding, sliding windows) has only other keys. It needs three, too:
        # all queries of the mean then see at least three keys.
        without_sink &= found.visible >= 3
        self._add("entropy", _sum(found.entropy, counted))
        self._add("sink_mass", _sum(found.sink_mass, counted))
        self._add("sink_free_entropy", _sum(found.sink_free_entropy, without_sink))
        self._add("queries", counted.sum((0, 2)))
        self._add("sink_free_queries", without_sink.sum((0, 2)))

    @property
    def saw_attention(self) -> bool:
        return bool(self.sums[SUMS.index("queries")].any())

    def _add(self, name: str, value: torch.Tensor | int) -> None:
        self.sums[SUMS.index(name)] += value.cpu() if isinstance(value, torch.Tensor) else value

    def _on_head_outputs(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # Kept for the gradient hook: W_O's gradient is the product of these head outputs and the gradient at
        # the output.
        self._heads = inputs[0].detach()
        outputs = self._heads.unflatten(-1, (self.site.num_heads, self.site.head_dim))
        norms = torch.einsum("bthi,hij->bthj", outputs, self._output_shape).norm(dim=-1)
        real = torch.ones_like(norms[..., 0], dtype=torch.bool) if self.real is None else self.real
        self._add("output_norm", (norms.double() * real[..., None]).sum((0, 1)))
        self._add("tokens", real.sum())

    @cached_property
    def _output_shape(self) -> torch.Tensor:
        """R^T of W_O^T = Q R, (heads, head_dim, head_dim): |o W_O| = |o R^T| without the width, nor a square of W_O."""
        # A head's norm needs only its head_dim x head_dim factor R: cheaper than the product with W_O (head_dim
        # x width), and unlike the Gram matrix W_O W_O^T it does not square the condition number.
        weight = _output_weight(self.site).unflatten(0, (self.site.num_heads, self.site.head_dim))
        return torch.linalg.qr(weight.transpose(1, 2).to(torch.promote_types(weight.dtype, torch.float32)), "r").R.mT

    def _on_projection(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self._want_output_gradient:
            heads = self._heads
            # A tensor hook, because the gradient at the layer's output exists only in the backward pass. `heads` is
            # bound now: a layer that serves at several steps replaces `self._heads` before the backward pass.
            output.register_hook(lambda delta: self._add_output_gradient(heads, delta))

    def _add_output_gradient(self, heads: torch.Tensor, delta: torch.Tensor) -> None:
        # The product is taken in the model's precision, the sum over batches in float64.
        added = (heads.flatten(0, 1).T @ delta.flatten(0, 1)).double()
        self._output_gradient = added if self._output_gradient is None else self._output_gradient + added


def _measure(model: PlasticModel, batch: Batch, head_map: HeadMap, recorders: Sequence[_SiteRecorder]) -> None:
    # One gate an example: one backward pass then gives the gradient of every window separately (heads.md 2.3).
    present = torch.from_numpy(head_map.present).to(batch.inputs.device, torch.float32)
    gates = [row.repeat(batch.inputs.shape[0], 1, 1).requires_grad_() for row in present]
    for recorder in recorders:
        recorder.real = None if batch.attention_mask is None else batch.attention_mask.bool()
    with model.replaced_gates(gates):
        losses = losses_of(model, batch)
    # The sum over examples keeps them apart, since no example's loss depends on another one's gates. Only gates
    # are differentiated: no parameter's `.grad` is touched.
    gradients = torch.autograd.grad(example_losses(losses, batch.labels).sum(), gates)
    for recorder, gradient in zip(recorders, gradients, strict=True):
        recorder.add_gate_gradients(gradient)
        # A layer that calls attention in its own way was never watched: its means would be NaN.
        if not recorder.saw_attention:
            raise ModelError(
                f"layer {recorder.site.layer} does not attend through transformers' attention interface, "
                "so where its heads look cannot be measured."
            )


def _sum(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Sum (batch, heads, queries) over the counted queries, one number for each head."""
    return torch.where(counted, values, 0.0).double().sum((0, 2))


def _output_weight(site: AttentionSite) -> torch.Tensor:
    """Return W_O as (heads * head_dim, width), whatever the layout of the layer."""
    weight: Any = site.projection.weight
    (_, dim, _) = site.output[0]
    return weight.detach() if dim == 0 else weight.detach().T


def _l1(gradient: torch.Tensor, heads: int) -> Array:
    return gradient.abs().unflatten(0, (heads, -1)).sum((1, 2)).cpu().numpy()
