"""All head statistics in one forward and backward pass over fixed windows."""

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
"""Statistics that are means, and what they are means over."""
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

    Absent slots are measured behind their closed gates with the weights that stand there.

    Args:
        batches: this rank's batches; ranks may have different numbers.
        all_reduce: sums a float64 tensor over ranks.
        sensitivity: also measure absent slots' sensitivity: `gate` is E|dL/dgate| at a closed gate; `output` the
            entrywise l1 norm of E dL/dW_O, which is what the first Adam step can use when W_O is zero
            (RigL, Evci et al. 2020, section 3, for heads).
    """
    recorders = [_SiteRecorder(site, want_output_gradient=sensitivity == "output") for site in model.sites]
    watchers = {recorder.site.attention: recorder.watch for recorder in recorders}
    with _evaluating(model), watched_attention(model.network, watchers), ExitStack() as hooks:
        for recorder in recorders:
            hooks.enter_context(recorder.attached())
        for batch in batches:
            _measure(model, batch, head_map, recorders)
    device = next(model.parameters()).device
    sums = all_reduce(torch.stack([recorder.sums for recorder in recorders]).to(device)).cpu().numpy()
    found = dict(zip(SUMS, sums.transpose(1, 0, 2), strict=True))
    with np.errstate(invalid="ignore"):  # of no query at all, as in windows of two tokens: NaN
        means = {name: found[name] / found[count] for name, count in COUNTED_BY.items()}
    sensitivities = None
    if sensitivity == "gate":
        sensitivities = means["taylor"]
    elif sensitivity == "output":
        gradients = [_l1(all_reduce(recorder.gradient(device)), recorder.site.num_heads) for recorder in recorders]
        sensitivities = np.stack(gradients) / found["windows"]
    norms = magnitudes(model)
    return HeadStatistics(
        present=head_map.present,
        magnitude=norms["raw"],
        magnitude_ov=norms["ov"],
        magnitude_qk=norms["qk"],
        reference_entropy=reference_entropy,
        sensitivity=sensitivities,
        **means,
    )


class _SiteRecorder:
    """Sums of one layer's statistics, float64: the rows of SUMS, a column a head."""

    def __init__(self, site: AttentionSite, *, want_output_gradient: bool) -> None:
        self.site = site
        self.sums = torch.zeros(len(SUMS), site.num_heads, dtype=torch.float64)
        self.real: torch.Tensor | None = None
        """(batch, tokens), false at padding, of the batch that is being measured; None: nothing is padded."""
        self._want_output_gradient = want_output_gradient
        self._output_gradient: torch.Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [
            self.site.projection.register_forward_hook(self._on_projection),
            # First, before the gate multiplies: statistics describe the head, not the gate.
            self.site.projection.register_forward_pre_hook(self._on_head_outputs, prepend=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gradient(self, device: torch.device) -> torch.Tensor:
        """Return the summed gradient of the output weights, (heads * head_dim, width), zero without windows."""
        if self._output_gradient is not None:
            return self._output_gradient
        width = _output_weight(self.site).shape[1]
        return torch.zeros(self.site.num_heads * self.site.head_dim, width, dtype=torch.float64, device=device)

    def add_gate_gradients(self, gradient: torch.Tensor) -> None:
        """Add per-window gate gradients of shape (batch, 1, heads)."""
        gradient = gradient.squeeze(1).double()
        self._add("taylor", gradient.abs().sum(0))
        self._add("fisher", gradient.square().sum(0))
        self._add("signed_taylor", -gradient.sum(0))
        self._add("windows", gradient.shape[0])

    def watch(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, causal: bool
    ) -> None:
        batch, _, queries, _ = query.shape
        real = torch.ones(batch, queries, dtype=torch.bool, device=query.device) if self.real is None else self.real
        found = attention_statistics(
            query, key, mask, scaling=scaling, causal=causal, first=real.long().argmax(1)
        )  # fmt: skip
        counted, without_sink = ((keys >= 2) & real[:, None] for keys in (found.visible, found.others))
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
        self._heads = inputs[0].detach()
        outputs = self._heads.unflatten(-1, (self.site.num_heads, self.site.head_dim))
        norms = torch.einsum("bthi,hij->bthj", outputs, self._output_shape).norm(dim=-1)
        real = torch.ones_like(norms[..., 0], dtype=torch.bool) if self.real is None else self.real
        self._add("output_norm", (norms.double() * real[..., None]).sum((0, 1)))
        self._add("tokens", real.sum())

    @cached_property
    def _output_shape(self) -> torch.Tensor:
        """R^T of W_O^T = Q R, (heads, head_dim, head_dim): |o W_O| = |o R^T| without the width, nor a square of W_O."""
        weight = _output_weight(self.site).unflatten(0, (self.site.num_heads, self.site.head_dim))
        return torch.linalg.qr(weight.transpose(1, 2).to(torch.promote_types(weight.dtype, torch.float32)), "r").R.mT

    def _on_projection(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self._want_output_gradient:
            heads = self._heads
            output.register_hook(lambda delta: self._add_output_gradient(heads, delta))

    def _add_output_gradient(self, heads: torch.Tensor, delta: torch.Tensor) -> None:
        added = (heads.flatten(0, 1).T @ delta.flatten(0, 1)).double()
        self._output_gradient = added if self._output_gradient is None else self._output_gradient + added


def _measure(model: PlasticModel, batch: Batch, head_map: HeadMap, recorders: Sequence[_SiteRecorder]) -> None:
    present = torch.from_numpy(head_map.present).to(batch.inputs.device, torch.float32)
    gates = [row.repeat(batch.inputs.shape[0], 1, 1).requires_grad_() for row in present]
    for recorder in recorders:
        recorder.real = None if batch.attention_mask is None else batch.attention_mask.bool()
    with model.replaced_gates(gates):
        losses = losses_of(model, batch)
    gradients = torch.autograd.grad(example_losses(losses, batch.labels).sum(), gates)
    for recorder, gradient in zip(recorders, gradients, strict=True):
        recorder.add_gate_gradients(gradient)
        if not recorder.saw_attention:
            raise ModelError(
                f"layer {recorder.site.layer} does not attend through transformers' attention interface, "
                "so where its heads look cannot be measured."
            )


@contextmanager
def _evaluating(model: PlasticModel) -> Iterator[None]:
    """Evaluation mode, no gradients for parameters."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.train(was_training)


def _sum(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Sum (batch, heads, queries) over what is counted, a number a head."""
    return torch.where(counted, values, 0.0).double().sum((0, 2))


def _output_weight(site: AttentionSite) -> torch.Tensor:
    """Return W_O as (heads * head_dim, width), whatever the layout of the layer."""
    weight: Any = site.projection.weight
    (_, dim, _) = site.output[0]
    return weight.detach() if dim == 0 else weight.detach().T


def _l1(gradient: torch.Tensor, heads: int) -> Array:
    return gradient.abs().unflatten(0, (heads, -1)).sum((1, 2)).cpu().numpy()
