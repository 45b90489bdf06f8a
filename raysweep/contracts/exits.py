"""Describe an exit rule: when a token leaves a recurrent network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ExitLook:
    """What an exit rule may know, after a step, of the tokens that it is asked about: a row for each token."""

    step: int
    """Steps done, from 1."""
    steps: int
    """After so many every token leaves."""
    min_steps: int
    """Before so many none does."""
    before: torch.Tensor
    """States before the step, (tokens, width)."""
    after: torch.Tensor
    memory: torch.Tensor
    """A number of the rule's own for each token, 0 at first; (tokens,)."""
    logits: torch.Tensor | None = None
    """What is predicted from `after`, (tokens, classes); where the rule reads predictions."""
    logits_before: torch.Tensor | None = None
    """What it saw in its look before; None in the first."""
    leave: torch.Tensor | None = None
    """The exit head's logits of leaving now, (tokens,); where the rule reads them."""
    chance: torch.Tensor | None = None
    """One even draw from [0, 1) for each token, the same at every step; where the rule reads it."""


class Exit(Protocol):
    """strategies/exits/<name>.py: when a token leaves a network that applies one module again and again."""

    reads: ClassVar[Literal["states", "predictions", "exit_head", "chance"]]
    """What it looks at. One that reads predictions is asked about the tokens that are predicted from alone, since a
    look costs as much as a prediction; any other about every token."""
    looks_back: float
    """How many steps before the first possible exit it begins to look."""

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens leave, and what to remember of each; (tokens,) both."""
