"""The contract of model families: where the attention heads of an architecture live."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Family(Protocol):
    """networks/models/<model_type>.py: one architecture of transformers, by its `model_type`."""

    tasks: ClassVar[tuple[str, ...]]
    """What its networks can learn, as files in networks/tasks/; the first one unless a job says otherwise."""
    sizes: ClassVar[dict[str, dict[str, Any]]]
    """From-scratch sizes: name -> configuration values; with the largest vocabulary, for text."""
    recurrent_trunks: ClassVar[tuple[str, ...]] = ()
    """Forms of its trunk that apply one module again and again, so that tokens can leave step by step: `cycle.infer`.
    """
    compiles: ClassVar[bool] = False
    """Whether torch.compile takes its networks whole, gates and hooks included."""

    @abstractmethod
    def config(self, size: str, *, vocab_size: int, seq_len: int) -> Any:
        """Return the transformers configuration of a from-scratch size, dropout off."""

    def reserved_positions(self, config: Any) -> int:
        """Return how many rows of the position table come before the first token's. Default: none."""
        return 0

    @abstractmethod
    def sites(self, network: PreTrainedModel) -> list[AttentionSite]:
        """Return one site per layer, parameter names as in `network.named_parameters()`."""

    @abstractmethod
    def resize(self, attention: Any, heads: int, key_value_heads: int) -> None:
        """Set the head counts that one layer's attention module keeps besides its weights, after compaction."""


Role = Literal["query", "key", "value", "output"]


# A fused projection holds query, key and value of all heads in one parameter, a separate one each in its
# own, and weights lie in rows or columns by family. A triple describes all of these, so that surgery needs
# no case by family.
Place = tuple[str, int, int]
"""(parameter, dim, offset): the heads lie one after the other along `dim` of that parameter, from `offset` on."""


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
    # A place for the weight and, where there is one, a place for the bias. The output bias is no head's: it stays.
    query: Sequence[Place]
    key: Sequence[Place]
    value: Sequence[Place]
    output: Sequence[Place]
    interleaved: int = 1
    """Head widths from one head to the next in query, key and value; 3 where each head keeps its three together."""
    gain: str | None = None
    """Parameter of the gain of the layer's norm in front of its heads, (width,); None where it has none there."""

    def head_slices(self, head: int) -> list[HeadSlice]:
        """Return the slices of a query head that no other head shares."""
        # Grouped query heads share their key and value, which must stay as long as one head of the group is
        # present: `group_slices` has them. Where every head has its own key and value, they go with the head.
        slices = self._slices("query", self.query, head) + self._slices("output", self.output, head)
        return slices if self.grouped else slices + self.group_slices(head)

    def group_slices(self, group: int) -> list[HeadSlice]:
        """Return the key and value slices of one key/value head."""
        return self._slices("key", self.key, group) + self._slices("value", self.value, group)

    @property
    def grouped(self) -> bool:
        """Whether query heads share key/value heads."""
        return self.num_key_value_heads != self.num_heads

    def group_of(self, head: int) -> int:
        """Return the key/value head of a query head: consecutive query heads share one."""
        return head * self.num_key_value_heads // self.num_heads

    def _slices(self, role: Role, where: Sequence[Place], index: int) -> list[HeadSlice]:
        # Fused projections may interleave: [q0 k0 v0 q1 k1 v1 ...]. From one head's query to the next are then
        # three head widths. The output projection has no key and value beside it, so it is never interleaved.
        step = self.head_dim * (1 if role == "output" else self.interleaved)
        return [
            HeadSlice(parameter=name, role=role, dim=dim, start=offset + index * step, length=self.head_dim)
            for name, dim, offset in where
        ]
