"""The contract of tasks, which turn rows of data into batches, and the facts about the data that they need."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from raysweep.contracts.arrays import Examples
from raysweep.job.spec import Masking

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The inputs of a network and the labels it should predict."""

    inputs: torch.Tensor
    """The network's main input: token ids (batch, tokens), or pixels (batch, channels, height, width)."""
    # -100 is the label that torch's cross-entropy ignores by default.
    labels: torch.Tensor
    """The class to predict at each position of the logits, (batch, positions) or (batch,); -100 where there is none."""
    attention_mask: torch.Tensor | None = None
    """(batch, tokens): 0 at padding. None: nothing is padded."""
    token_types: torch.Tensor | None = None
    """(batch, tokens): the segment that each token belongs to. None: all belong to the first."""
    labelled: torch.Tensor | None = None
    """Flat positions, among (batch, tokens), that have a label: only their logits need to be computed. None: nearly all
    positions have one, or each example has a single label."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a task and a network must know about the data; None where it does not apply."""

    vocab_size: int | None = None
    mask_token: int | None = None
    """Id of the token that hides another one."""
    pad_token: int | None = None
    """Id of the token that fills a row after its text."""
    special_tokens: tuple[int, ...] = ()
    """Ids of the tokens that are not text, such as padding, and of the unknown token: masking never hides them."""
    masking: Masking = "bert"
    """What replaces the tokens to be predicted; see data.masking."""
    num_classes: int | None = None
    pairs: bool = False
    """Every example is a pair of sentences: its tokens belong to two segments."""
    image_shape: tuple[int, int, int] | None = None
    """(channels, height, width)"""
    brightest: int | None = None
    """Largest value of a pixel; the smallest is 0."""


class Task(Protocol):
    """networks/tasks/<name>.py: what a model learns, from a row of integers to inputs and labels."""

    reads: ClassVar[Literal["windows", "sentences", "images"]]
    """The kind of data it learns from. A row of integers holds, for windows: tokens; for sentences: label, number of
    tokens, number of tokens before the second sentence of a pair, tokens and padding; for images: label, pixels by
    channel, row and column."""
    needs: ClassVar[tuple[str, ...]]
    """Names of the Facts that it cannot do without."""
    new_head: ClassVar[bool]
    """Whether a pretrained network may lack the layers after its trunk, which are then drawn at random."""
    model_class: ClassVar[str]
    """The auto class of transformers that builds its networks, such as AutoModelForCausalLM."""
    causal: ClassVar[bool]
    """Whether no position may see a later one."""
    even: ClassVar[bool]
    """Whether every example has equally many labels."""
    predicted: ClassVar[float]
    """Share of positions whose logits are computed."""
    facts: Facts
    """Its one field: the facts about the data at hand."""

    # Seeds belong to examples, not to batches: a masked token is then the same whatever the batch size and
    # whichever rank an example goes to, so held-out numbers depend on neither.
    @abstractmethod
    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        """Return examples as a batch, on the CPU; random choices follow from each example's seed."""
