"""What networks here are built of: attention, feed-forward, gates, one block of each kind of trunk."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from raysweep.networks.pnn.config import PnnConfig

LEAST_TEMPERATURE = 1e-3
"""A softplus alone rounds to 0 far below 0, and a gate would be 0 / 0."""


class InProjection(nn.Linear):
    """Of queries, keys or values: a class of its own for its first weights."""


class UpdateNorm(nn.LayerNorm):
    """Behind the feed-forward part, where a proposal ends: a class of its own for its first weights."""


class Attending(Protocol):
    """The tokens that still take part where others have left; see Remaining in remaining.py."""

    def attended(self, attention: Attention, read: torch.Tensor, head_mask: torch.Tensor | None) -> torch.Tensor:
        """Attend from the remaining tokens, (places, width), to all tokens; (places, width)."""


class Attention(nn.Module):
    """Multi-head attention of every token to all others, through transformers' attention interface."""

    is_causal = False

    def __init__(self, config: PnnConfig) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        width = config.num_attention_heads * self.head_dim
        self.q_proj = InProjection(config.hidden_size, width)
        self.k_proj = InProjection(config.hidden_size, width)
        self.v_proj = InProjection(config.hidden_size, width)
        self.o_proj = nn.Linear(width, config.hidden_size)

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
        remaining: Attending | None = None,
    ) -> torch.Tensor:
        """Attend from some tokens to others.

        Args:
            queries: (batch, queries, width); keys: (batch, keys, width).
            attention_mask: as the attention interface takes it; None: everything is seen.
            head_mask: (heads,), what each head's output is multiplied by.
            remaining: whose tokens the queries are, (tokens, width); it knows the keys.
        """
        if remaining is not None:
            return remaining.attended(self, queries, head_mask)
        return self.mix(queries, *self.keys_and_values(keys), attention_mask, head_mask)

    def queries(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (batch, heads, tokens, head_dim)."""
        return self._by_head(self.q_proj(hidden))

    def keys_and_values(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (batch, heads, tokens, head_dim) each."""
        return self._by_head(self.k_proj(hidden)), self._by_head(self.v_proj(hidden))

    def mix(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend to keys and values that are there already."""
        return self.o_proj(self.attend(self.queries(queries), keys, values, attention_mask, head_mask))

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what the heads found, before their projection, (batch, queries, heads * head_dim)."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.dropout if self.training else 0.0
        mixed, _ = attend(self, query, keys, values, attention_mask, dropout=dropout, scaling=self.head_dim**-0.5)
        if head_mask is not None:
            mixed = mixed * head_mask[:, None]
        return mixed.flatten(-2)

    def _by_head(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, config: PnnConfig, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, width)
        self.down = nn.Linear(width, config.hidden_size)
        self.inner_dropout = nn.Dropout(config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.down(self.inner_dropout(functional.gelu(self.up(hidden)))))


class Gate(nn.Module):
    """How much of each element of an update comes in; between 0 and 1, of the update's shape or for all alike.

    `query_key` is sigmoid(q(state) * k(update) / tau), element by element; tau stays positive by a softplus and begins
    at the square root of the width.
    """

    def __init__(self, config: PnnConfig) -> None:
        super().__init__()
        self.form, self.value = config.gate, config.gate_value
        if self.form == "query_key":
            self.query = nn.Linear(config.hidden_size, config.hidden_size)
            self.key = nn.Linear(config.hidden_size, config.hidden_size)
            self.raw_temperature = nn.Parameter(torch.tensor(first_raw_temperature(config.hidden_size)))
        elif self.form == "scalar":
            self.logit = nn.Parameter(torch.zeros(()))

    @property
    def temperature(self) -> torch.Tensor:
        return LEAST_TEMPERATURE + functional.softplus(self.raw_temperature)

    def forward(self, state: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        if self.form == "query_key":
            return torch.sigmoid(self.query(state) * self.key(update) / self.temperature)
        if self.form == "scalar":
            return torch.sigmoid(self.logit)
        return update.new_tensor(1.0 if self.form == "none" else self.value)


def first_raw_temperature(width: int) -> float:
    """Return what a softplus, and the least temperature, make the square root of the width of."""
    tau = math.sqrt(width) - LEAST_TEMPERATURE
    return tau + math.log(-math.expm1(-tau))


class RefinerProposal(nn.Module):
    """An update as the refiner proposes it: LN(FFN(LN(x + attention))); no residual around the feed-forward part.

    Each of its modules is called exactly once a step.
    """

    def __init__(self, config: PnnConfig, width: int) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = FeedForward(config, width)
        self.feed_forward_norm = UpdateNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def propose(self, hidden: torch.Tensor, **seen: Any) -> torch.Tensor:
        """Return the proposal, (batch, tokens, width); `seen` goes to the attention."""
        return self.transform(hidden, self.attention(hidden, hidden, **seen))

    def transform(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Return the proposal for tokens that have attended."""
        mixed = self.attention_norm(hidden + self.dropout(attended))
        return self.feed_forward_norm(self.feed_forward(mixed))


class Refiner(RefinerProposal):
    """h + gate(h, p) * p, p being proposed from the state that is read (pnn.md, section 1)."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__(config, config.intermediate_size)
        self.gate = Gate(config)

    def forward(self, hidden: torch.Tensor, read: torch.Tensor, **seen: Any) -> torch.Tensor:
        """Return the next state.

        Args:
            hidden: the state, (batch, tokens, width).
            read: what the proposal is made from; the state itself, with what is injected.
        """
        proposed = self.propose(read, **seen)
        return hidden + self.gate(hidden, proposed) * proposed


class HierarchicalRefiner(nn.Module):
    """Blocks that add up gated proposals, and a gate on their sum."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerProposal(config, width) for width in config.block_widths)
        self.block_gates = nn.ModuleList(Gate(config) for _ in config.block_widths)
        self.gate = Gate(config)

    def forward(self, hidden: torch.Tensor, read: torch.Tensor, **seen: Any) -> torch.Tensor:
        total = torch.zeros_like(hidden)
        for block, gate in zip(self.blocks, self.block_gates, strict=True):
            proposed = block.propose(read + total, **seen)
            total = total + gate(hidden, proposed) * proposed
        return hidden + self.gate(hidden, total) * total


class Layer(RefinerProposal):
    """BERT's encoder layer, normalised after each residual (Devlin et al. 2019)."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__(config, config.intermediate_size)

    def transform(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        mixed = self.attention_norm(hidden + self.dropout(attended))
        return self.feed_forward_norm(mixed + self.feed_forward(mixed))

    def forward(self, hidden: torch.Tensor, read: torch.Tensor, **seen: Any) -> torch.Tensor:
        return self.propose(read, **seen)
