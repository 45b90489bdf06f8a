"""Describe an architecture of transformers: where its attention heads live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn


class Family(Protocol):
    """networks/models/<model_type>.py: one architecture of transformers, by its `model_type`."""

    tasks: ClassVar[tuple[str, ...]]
    """What its networks can learn, as files in networks/tasks/; the first one unless a job says otherwise."""
    sizes: ClassVar[dict[str, dict[str, Any]]]
    """From-scratch sizes: name -> configuration values; with the largest vocabulary, for text."""

    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        """Return the transformers configuration of a from-scratch size, dropout off."""

    # A family with networks that apply one module again and again names these forms: `recurrent_trunks`.
    # A family whose position table has rows before the first token's says how many: `reserved_positions(config)`.
    # A family whose networks torch.compile takes whole says so: `compiles`.

    def sites(self, network: nn.Module) -> list[AttentionSite]:
        """Return one site per layer, parameter names as in `network.named_parameters()`."""

    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        """Set what one layer's attention module knows of its head counts besides its weights, after compaction."""


Role = Literal["query", "key", "value", "output"]


Place = tuple[str, int, int]
"""(parameter, dim, offset): a tensor that holds heads one after the other along `dim`, from `offset` on."""


@dataclass(frozen=True, kw_only=True)
class HeadSlice:
    """The part of one parameter that belongs to one head: `parameter.narrow(dim, start, length)`."""

    parameter: str
    role: Role
    dim: int
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class AttentionSite:
    """Where one layer's heads live.

    Head h's output enters `projection` at columns [h * head_dim, (h + 1) * head_dim) of its input, of shape
    (batch, tokens, num_heads * head_dim). Query heads share `num_heads // num_key_value_heads` to a key/value head.
    """

    layer: int
    attention: nn.Module
    projection: nn.Module
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    query: Sequence[Place]
    key: Sequence[Place]
    value: Sequence[Place]
    output: Sequence[Place]
    interleaved: int = 1
    """Head widths from one head to the next in query, key and value; 3 where each head keeps its three together."""
    gain: str | None = None
    """Parameter of the gain of the layer's norm in front of its heads, (width,); None where it has none there."""

    def head_slices(self, head: int) -> list[HeadSlice]:
        """Return what belongs to a query head alone; with one key/value head each, that includes key and value."""
        slices = self._slices("query", self.query, head) + self._slices("output", self.output, head)
        return slices if self.grouped else slices + self.group_slices(head)

    def group_slices(self, group: int) -> list[HeadSlice]:
        """Return the key and value slices of one key/value head."""
        return self._slices("key", self.key, group) + self._slices("value", self.value, group)

    @property
    def grouped(self) -> bool:
        return self.num_key_value_heads != self.num_heads

    def group_of(self, head: int) -> int:
        return head * self.num_key_value_heads // self.num_heads

    def _slices(self, role: Role, where: Sequence[Place], index: int) -> list[HeadSlice]:
        step = self.head_dim * (1 if role == "output" else self.interleaved)
        return [
            HeadSlice(parameter=name, role=role, dim=dim, start=offset + index * step, length=self.head_dim)
            for name, dim, offset in where
        ]
