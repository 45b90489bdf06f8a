"""The parts of a PNN: attention, feed-forward, gates, and one block of each kind of trunk."""

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
"""Added to the softplus, which alone rounds to 0 for very negative arguments: a gate would then be 0 / 0."""


class InProjection(nn.Linear):
    """The projection to queries, keys or values; a class of its own because its first weights are drawn otherwise."""


class UpdateNorm(nn.LayerNorm):
    """The norm at the end of a proposal; a class of its own because `init: zero` starts it at 0."""


class Attending(Protocol):
    """The tokens that still take part where others have left; see Remaining in remaining.py."""

    def attended(self, attention: Attention, read: torch.Tensor, head_mask: torch.Tensor | None) -> torch.Tensor:
        """Attend from the remaining tokens, (places, width), to all tokens; (places, width)."""


class Attention(nn.Module):
    """Multi-head attention of every token to all tokens, through transformers' attention interface."""

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
            attention_mask: as the attention interface takes it; None: everything is visible.
            head_mask: (heads,), factors of the heads' outputs.
            remaining: in inference with early exits, the remaining tokens: `queries` are theirs, (tokens, width), and
                it holds the keys and values of all tokens.
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
        """Attend to keys and values that were computed before."""
        return self.o_proj(self.attend(self.queries(queries), keys, values, attention_mask, head_mask))

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        head_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the heads' outputs before the output projection, (batch, queries, heads * head_dim)."""
        # Looked up in each call: the probe and users switch the attention function of a network at any time.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.dropout if self.training else 0.0
        mixed, _ = attend(self, query, keys, values, attention_mask, dropout=dropout, scaling=self.head_dim**-0.5)
        if head_mask is not None:
            # Attention functions return (batch, queries, heads, head_dim): one factor for each head.
            mixed = mixed * head_mask[:, None]
        return mixed.flatten(-2)

    def _by_head(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: PnnConfig, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, width)
        self.down = nn.Linear(width, config.hidden_size)
        self.inner_dropout = nn.Dropout(config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.down(self.inner_dropout(functional.gelu(self.up(hidden)))))


class Gate(nn.Module):
    """The share of each element of an update that is added to the state; of the update's shape, or one number for all.

    `query_key` is sigmoid(q(state) * k(update) / tau), element by element. A softplus keeps tau positive; tau starts at
    the square root of the width.
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
    """Return the raw temperature whose temperature is the square root of the width."""
    tau = math.sqrt(width) - LEAST_TEMPERATURE
    # The inverse of a softplus, log(exp(tau) - 1), written without exp(tau), which overflows for large widths.
    return tau + math.log(-math.expm1(-tau))


class RefinerProposal(nn.Module):
    """The proposal of an update, LN(FFN(LN(x + attention))); no residual around the feed-forward part.

    Each of its modules is called exactly once in a step: interventions count calls to know the step.
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
    """The published trunk: h + gate(h, p) * p, where p is proposed from what the step reads (pnn.md, section 1)."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__(config, config.intermediate_size)
        self.gate = Gate(config)

    def forward(self, hidden: torch.Tensor, read: torch.Tensor, **seen: Any) -> torch.Tensor:
        """Return the next state.

        Args:
            hidden: the state, (batch, tokens, width).
            read: input of the proposal: the state, plus the embedding and step code where configured.
        """
        proposed = self.propose(read, **seen)
        return hidden + self.gate(hidden, proposed) * proposed


class HierarchicalRefiner(nn.Module):
    """A refiner of several blocks: gated proposals are added up, and a last gate acts on their sum."""

    def __init__(self, config: PnnConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerProposal(config, width) for width in config.block_widths)
        self.block_gates = nn.ModuleList(Gate(config) for _ in config.block_widths)
        self.gate = Gate(config)

    def forward(self, hidden: torch.Tensor, read: torch.Tensor, **seen: Any) -> torch.Tensor:
        total = torch.zeros_like(hidden)
        for block, gate in zip(self.blocks, self.block_gates, strict=True):
            # Each block reads the state plus what the blocks before it proposed in this step.
            assert isinstance(block, RefinerProposal)
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
