"""All head statistics in one forward and backward pass over fixed windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from raysweep.contracts import Array, Batch, HeadStatistics
from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.model import PlasticModel
from raysweep.plasticity.objective import example_losses, logits_of
from raysweep.plasticity.sites import AttentionSite

AllReduce = Callable[[torch.Tensor], torch.Tensor]


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
    with _probing(model), ExitStack() as hooks:
        for recorder in recorders:
            hooks.enter_context(recorder.attached())
        for batch in batches:
            _measure(model, batch, head_map, recorders)
    layers, heads = model.shape
    device = next(model.parameters()).device
    sums = torch.stack([recorder.sums for recorder in recorders]).to(device)
    counts = torch.tensor([recorders[0].windows, recorders[0].queries, recorders[0].tokens], dtype=torch.float64)
    sums, counts = all_reduce(sums), all_reduce(counts.to(device))
    taylor, entropy, sink, norm = sums.cpu().numpy().transpose(1, 0, 2)
    num_windows, num_queries, num_tokens = counts.cpu().numpy()
    sensitivities = None
    if sensitivity == "gate":
        sensitivities = taylor / num_windows
    elif sensitivity == "output":
        sensitivities = np.stack(
            [_l1(all_reduce(recorder.gradient(device)), heads) / num_windows for recorder in recorders]
        )
    return HeadStatistics(
        present=head_map.present,
        taylor=taylor / num_windows,
        entropy=entropy / num_queries,
        sink_mass=sink / num_queries,
        output_norm=norm / num_tokens,
        magnitude=_magnitude(model),
        reference_entropy=reference_entropy,
        sensitivity=sensitivities,
    )


class _SiteRecorder:
    """Sums of one layer's statistics, float64: rows taylor, entropy, sink mass, output norm."""

    def __init__(self, site: AttentionSite, want_output_gradient: bool) -> None:
        self.site = site
        self.sums = torch.zeros(4, site.num_heads, dtype=torch.float64)
        self.windows = self.queries = self.tokens = 0
        self.mask: torch.Tensor | None = None
        """Of the batch at hand: (batch, tokens), 0 at padding."""
        self._want_output_gradient = want_output_gradient
        self._output_gradient: torch.Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [
            self.site.attention.register_forward_hook(self._on_attention),
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
        self.windows += gradient.shape[0]
        self.sums[0] += gradient.squeeze(1).double().abs().sum(0).cpu()

    def _on_attention(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        weights = outputs[1]
        if weights is None:
            raise RuntimeError(f"layer {self.site.layer} gives no attention weights; the probe needs eager attention")
        weights = weights.detach().double()
        visible = self._visible_keys(weights, causal=module.is_causal)
        counted = (visible >= 2).double().unsqueeze(1)  # a single key: no entropy to speak of
        entropy = torch.special.entr(weights).sum(-1) / visible.clamp_min(2).log().unsqueeze(1)
        self.sums[1] += (entropy * counted).sum((0, 2)).cpu()
        self.sums[2] += (weights[..., 0] * counted).sum((0, 2)).cpu()
        self.queries += int(counted.sum())

    def _visible_keys(self, weights: torch.Tensor, causal: bool) -> torch.Tensor:
        """Return how many keys each query sees, (batch, queries), 0 for padding. Windows of causal models are full."""
        batch, _, queries, keys = weights.shape
        if causal:
            return torch.arange(1, keys + 1, device=weights.device).double().expand(batch, queries)
        if self.mask is None:
            return torch.full((batch, queries), float(keys), dtype=torch.float64, device=weights.device)
        return self.mask.double() * self.mask.double().sum(1, keepdim=True)

    def _on_head_outputs(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._heads = inputs[0].detach()
        outputs = self._heads.unflatten(-1, (self.site.num_heads, self.site.head_dim))
        weight = _output_weight(self.site).unflatten(0, (self.site.num_heads, self.site.head_dim))
        gram = weight @ weight.transpose(1, 2)
        squared = torch.einsum("bthi,hij,bthj->bth", outputs, gram, outputs)
        norms = squared.clamp_min(0).sqrt().double()
        if self.mask is None:
            self.tokens += outputs.shape[0] * outputs.shape[1]
        else:
            norms = norms * self.mask.unsqueeze(-1)
            self.tokens += int(self.mask.sum())
        self.sums[3] += norms.sum((0, 1)).cpu()

    def _on_projection(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self._want_output_gradient:
            heads = self._heads
            output.register_hook(lambda delta: self._add_output_gradient(heads, delta))

    def _add_output_gradient(self, heads: torch.Tensor, delta: torch.Tensor) -> None:
        added = (heads.flatten(0, 1).T @ delta.flatten(0, 1)).double()
        self._output_gradient = added if self._output_gradient is None else self._output_gradient + added


def _measure(model: PlasticModel, batch: Batch, head_map: HeadMap, recorders: Sequence[_SiteRecorder]) -> None:
    for recorder in recorders:
        recorder.mask = batch.attention_mask
    present = torch.from_numpy(head_map.present).to(batch.inputs.device, torch.float32)
    gates = [row.repeat(batch.inputs.shape[0], 1, 1).requires_grad_() for row in present]
    with model.replaced_gates(gates):
        logits = logits_of(model, batch)
    gradients = torch.autograd.grad(example_losses(logits, batch.labels).sum(), gates)
    for recorder, gradient in zip(recorders, gradients, strict=True):
        recorder.add_gate_gradients(gradient)


@contextmanager
def _probing(model: PlasticModel) -> Iterator[None]:
    """Evaluation mode, eager attention (only it returns weights), no gradients for parameters."""
    network: Any = model.network
    before = network.config._attn_implementation
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.eval()
    network.set_attn_implementation("eager")
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        network.set_attn_implementation(before)
        model.train(was_training)


def _output_weight(site: AttentionSite) -> torch.Tensor:
    """Return W_O as (heads * head_dim, width), whatever the layout of the layer."""
    weight: Any = site.projection.weight
    (_, dim, _) = site.output[0]
    return weight.detach() if dim == 0 else weight.detach().T


def _l1(gradient: torch.Tensor, heads: int) -> Array:
    return gradient.abs().unflatten(0, (heads, -1)).sum((1, 2)).cpu().numpy()


@torch.no_grad()
def _magnitude(model: PlasticModel) -> Array:
    parameters = dict(model.network.named_parameters())

    def squared(site: AttentionSite, head: int) -> float:
        parts = (parameters[p.parameter].narrow(p.dim, p.start, p.length) for p in site.head_slices(head))
        return sum(float(part.double().square().sum()) for part in parts)

    return np.array([[squared(site, head) ** 0.5 for head in range(site.num_heads)] for site in model.sites])
