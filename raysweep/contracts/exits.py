"""The contract of exit rules, which say when a token leaves a recurrent network."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ExitLook:
    """What an exit rule sees after a step, a row for each token that is still in the network."""

    step: int
    """Steps done, from 1."""
    steps: int
    """The most steps: after these every token leaves."""
    min_steps: int
    """The fewest steps: before these no token leaves."""
    before: torch.Tensor
    """States before the step, (tokens, width)."""
    after: torch.Tensor
    """States after the step, (tokens, width)."""
    memory: torch.Tensor
    """One number a token that the rule keeps from step to step, 0 at first; (tokens,)."""
    logits: torch.Tensor | None = None
    """Predictions from `after`, (tokens, classes); for rules that read predictions."""
    logits_before: torch.Tensor | None = None
    """Predictions at the step before; None at the first step that the rule looks at."""
    leave: torch.Tensor | None = None
    """The exit head's logits of leaving at this step, (tokens,); for rules that read the exit head."""
    chance: torch.Tensor | None = None
    """A uniform draw from [0, 1) for each token, the same at every step; for rules that read chance."""


class Exit(Protocol):
    """strategies/exits/<name>.py: when a token leaves a network that applies one module again and again."""

    # A rule that reads predictions is given only the tokens that are predicted from, since each of its
    # looks costs as much as a prediction; any other rule is given every token.
    reads: ClassVar[Literal["states", "predictions", "exit_head", "chance"]]
    """Which part of the look it reads."""

    @property
    @abstractmethod
    def looks_back(self) -> float:
        """How many steps before the first possible exit it begins to look."""

    @abstractmethod
    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens leave, and the new `memory` of each; (tokens,) both."""
