"""Heads that open and close with the input: a small learned router in each layer decides for every token.

A router reads one token's input of the attention block and nothing else, so a causal network stays causal. A head that
is closed for a token adds nothing to that token's output; its keys and values remain, for later tokens may need them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from raysweep.contracts import Array, AttentionSite
from raysweep.networks.plasticity.accounting import flops_per_token
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel

FIRST_LOGIT = 2.0
"""First bias of every router: all heads are open, and sigmoid(2) = 0.88 still lets gradients through."""


class HardGate(torch.autograd.Function):
    """A step function with the gradient of sigmoid(logit - threshold): the straight-through estimator.

    Forward is 1 where a logit exceeds the threshold, else 0 (Bengio, Leonard and Courville 2013, section 3).
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, threshold: float) -> torch.Tensor:
        ctx.save_for_backward(torch.sigmoid(logits - threshold))
        return (logits > threshold).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (soft,) = ctx.saved_tensors
        return gradients[0] * soft * (1 - soft), None


class HeadRouters(nn.Module):
    """One linear map for each layer, from a token's input of the attention block (width) to one logit for each head.

    Args:
        model: left unchanged; its gates are set inside `routing` only.
        head_map: absent heads stay closed whatever the routers say.
    """

    def __init__(self, model: PlasticModel, head_map: HeadMap) -> None:
        super().__init__()
        # In a tuple, so that nn.Module does not register the model's parameters as the routers' own.
        self.model = (model,)
        self.head_map = head_map
        config = model.network.config
        first = next(model.network.parameters())
        layers = [
            nn.Linear(config.hidden_size, site.num_heads, device=first.device, dtype=first.dtype)
            for site in model.sites
        ]
        for layer in layers:
            # Zero weights: at first no router depends on the input, and every head is open.
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, FIRST_LOGIT)
        self.layers = nn.ModuleList(layers)
        self.expected: list[torch.Tensor] = [first.new_zeros(()) for _ in model.sites]
        """By layer, in the last forward pass: the expected number of open heads, averaged over tokens."""
        self.opened: Array = np.zeros(model.shape)
        """[layers][heads]: number of tokens for which a head was open since `routing` began."""
        self.tokens = 0

    @contextmanager
    def routing(self, threshold: float = 0.0) -> Iterator[None]:
        """Let the routers set the gates; a threshold of -inf opens every present head for every token."""
        (model,) = self.model
        self.opened, self.tokens = np.zeros(model.shape), 0
        before = [gate.values for gate in model.gates]
        hooks = [
            site.attention.register_forward_pre_hook(partial(self._route, layer, threshold), with_kwargs=True)
            for layer, site in enumerate(model.sites)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for gate, values in zip(model.gates, before, strict=True):
                gate.values = values

    def _route(self, layer: int, threshold: float, module: nn.Module, inputs: Any, options: Any) -> None:
        # Families pass the block's input by position or by name.
        hidden = inputs[0] if inputs else options["hidden_states"]
        logits = self.layers[layer](hidden)
        present = torch.from_numpy(self.head_map.present[layer]).to(logits.device, logits.dtype)
        # (batch, tokens, heads): the gate broadcasts over each head's width.
        values: Any = HardGate.apply(logits, threshold)
        values = values * present
        (model,) = self.model
        model.gates[layer].values = values
        self.expected[layer] = (torch.sigmoid(logits.float() - threshold) * present).flatten(0, -2).mean(0).sum()
        self.opened[layer] += values.detach().double().flatten(0, -2).sum(0).cpu().numpy()
        # Each layer sees the same tokens: count them once.
        self.tokens += hidden.shape[:-1].numel() if layer == 0 else 0

    def expected_share(self, seq_len: int) -> torch.Tensor:
        """Return the expected FLOPs of open heads in the last forward pass, as a share of all present heads' FLOPs."""
        (model,) = self.model
        costs = [gated_flops(model, site, seq_len) for site in model.sites]
        whole = sum(cost * int(row.sum()) for cost, row in zip(costs, self.head_map.present, strict=True))
        return torch.stack([cost * open_ for cost, open_ in zip(costs, self.expected, strict=True)]).sum() / whole

    def open_share(self) -> float:
        """Return the share of (token, present head) pairs that were open since `routing` began."""
        return float(self.opened.sum() / (self.tokens * self.head_map.active))

    def flops_per_token(self, seq_len: int) -> float:
        """Return forward FLOPs per token since `routing` began, those of the routers included.

        A closed head saves `gated_flops`, whether or not an implementation really skips it.
        """
        (model,) = self.model
        flops = flops_per_token(model, self.head_map, seq_len)
        for layer, site in enumerate(model.sites):
            # Mean number of present heads that were closed for a token.
            closed = self.head_map.present[layer].sum() - self.opened[layer].sum() / self.tokens
            flops -= gated_flops(model, site, seq_len) * float(closed)
            flops += 2.0 * self.layers[layer].get_parameter("weight").numel()
        return flops


def gated_flops(model: PlasticModel, site: AttentionSite, seq_len: int) -> float:
    """Return the FLOPs per token that closing a head saves: query and output projections and attention products.

    Keys and values are not included: other tokens may still attend to them. Attention products are counted as in
    `accounting.flops_per_token`.
    """
    slices = [part for part in site.head_slices(0) if part.role in ("query", "output")]
    weights = 0
    for part in slices:
        parameter = model.network.get_parameter(part.parameter)
        # Elements of one head's slice: the slice's length times the size of all other dimensions. Biases are
        # additions.
        weights += parameter.numel() // parameter.shape[part.dim] * part.length if parameter.dim() > 1 else 0
    return 2.0 * weights + 4.0 * seq_len * site.head_dim
