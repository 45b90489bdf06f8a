"""Describe a sampler: it proposes the next point of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from raysweep.job.space import Space

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a sampler may know of the one point that it is asked for. It keeps no state: it is built anew for each."""

    trial: int
    """Number of the trial, from 1."""
    seed: int
    """For this point alone: another one for each trial, and whenever a trial's point is drawn anew."""
    sequence: int
    """A seed that all trials share, another one when a trial's point is drawn anew."""
    space: Space
    job: Mapping[str, Any]
    """The job, resolved: what conditions on its own settings are judged by."""
    told: Sequence[tuple[Mapping[str, Any], tuple[float, ...]]]
    """Values and objectives of each completed trial, in the order in which they were told."""
    is_open: Callable[[Mapping[str, Any]], bool]
    """Whether a point is allowed and no trial has it yet."""


TOLD = "told"
"""Attribute of an ended trial in the study that Optuna samplers see: its place in the order of results."""


DIVERGED = "diverged"
"""Attribute of an ended trial in that study: whether it failed by its values, its loss being no number any more."""


SearchFeature = Literal["choice", "condition", "continuous", "strategies", "objectives", "constraints"]
"""A choice, a parameter under a condition, a continuous one; strategies of which none is chosen; several objectives;
constraints on results."""


class Sampler(Protocol):
    """strategies/samplers/<name>.py"""

    cannot: ClassVar[tuple[SearchFeature, ...]]
    """What a search may not ask of it: refused before anything runs. May be left out."""
    whole: ClassVar[bool]
    """It learns from points that all have the same parameters: one that does not exist in a trial counts as if it had
    its first value. May be left out."""

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler | Mapping[str, Any] | None:
        """Return the Optuna sampler that draws the point, seeded; or the point itself, a value for every parameter
        that exists in it, others being left unread; or None where there is none left."""
