"""Describe what a task makes of data: batches, and the facts about the data that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from raysweep.contracts.arrays import Examples
from raysweep.job.spec import Masking

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a network takes, and what it should predict."""

    inputs: torch.Tensor
    """The network's main input: token ids (batch, tokens), or pixels (batch, channels, height, width)."""
    labels: torch.Tensor
    """The class to predict at each position of the logits, (batch, positions) or (batch,); -100 where there is none."""
    attention_mask: torch.Tensor | None = None
    """(batch, tokens): 0 at padding. None: nothing is padded."""
    token_types: torch.Tensor | None = None
    """(batch, tokens): the segment that each token is of. None: all are of the first."""
    labelled: torch.Tensor | None = None
    """Flat positions, among (batch, tokens), of the labels that there are: logits elsewhere need not be computed. None:
    there is a label nearly everywhere, or one an example."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a task and a network must know of the data; None where the data has no such thing."""

    vocab_size: int | None = None
    mask_token: int | None = None
    """Id of the token that hides another one."""
    pad_token: int | None = None
    """Id of the token that fills a row after its text."""
    special_tokens: tuple[int, ...] = ()
    """Ids of the tokens that stand for no text, and of the one that stands for unknown text: never hidden."""
    masking: Masking = "bert"
    """What tokens that are to be predicted become; see data.masking."""
    num_classes: int | None = None
    pairs: bool = False
    """Every example is a pair of sentences: its tokens are of two segments."""
    image_shape: tuple[int, int, int] | None = None
    """(channels, height, width)"""
    brightest: int | None = None
    """Largest value of a pixel; the smallest is 0."""


class Task(Protocol):
    """networks/tasks/<name>.py: what a model learns, from a row of integers to inputs and labels.

    Its one field is `facts`.
    """

    reads: ClassVar[Literal["windows", "sentences", "images"]]
    """The kind of data it learns from. A row of integers is: tokens; label, number of tokens, number of tokens before
    the second sentence of a pair, tokens and padding; label, pixels by channel, row and column."""
    needs: ClassVar[tuple[str, ...]]
    """The facts without which it cannot be learnt."""
    new_head: ClassVar[bool]
    """A pretrained network may lack the layers after its trunk: they are then drawn at random."""
    model_class: ClassVar[str]
    """The automatic class of transformers that builds its networks."""
    causal: ClassVar[bool]
    """No position may see a later one."""
    even: ClassVar[bool]
    """Every example has equally many labels."""
    predicted: ClassVar[float]
    """Share of positions whose logits are computed."""
    facts: Facts

    def batch(self, examples: Examples, seeds: Sequence[int]) -> Batch:
        """Return examples as a batch, on the processor; what is random follows from each example's seed."""
