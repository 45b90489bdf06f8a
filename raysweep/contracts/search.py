"""The contract of samplers, which propose the next point of a search."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from raysweep.job.space import Space

if TYPE_CHECKING:
    import optuna


# Everything that a proposal depends on is in the draw, and a sampler keeps nothing between two of them. So
# a sweep that is resumed in a new process goes on with the points that it would have had.
@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a sampler may know when it proposes a point. A sampler keeps no state from one draw to the next."""

    trial: int
    """Number of the trial, from 1."""
    seed: int
    """For this point alone: another one for each trial, and whenever a trial's point is drawn anew."""
    sequence: int
    """A seed that all trials share, another one when a trial's point is drawn anew."""
    space: Space
    job: Mapping[str, Any]
    """The job, resolved: conditions of the space may refer to its settings."""
    told: Sequence[tuple[Mapping[str, Any], tuple[float, ...]]]
    """Values and objectives of each trial that completed, or failed by its values, in the order in which the results
    arrived. A failed one has infinite objectives."""
    is_open: Callable[[Mapping[str, Any]], bool]
    """Whether a point is allowed and no trial has it yet."""


TOLD = "told"
"""Attribute of an ended trial in the study that Optuna samplers see: its place in the order of results."""


FAILED = "failed"
"""Attribute of an ended trial in that study: whether it failed by its values, as by a loss that is no number, and not
because the cluster lost it."""


SearchFeature = Literal["choice", "condition", "continuous", "strategies", "objectives", "constraints"]
"""What a search can ask of its sampler: a choice, a parameter under a condition, a continuous one; a space without any
choice of strategies; several objectives; constraints on results."""


class Sampler(Protocol):
    """strategies/samplers/<name>.py: which point of the space the next trial tries."""

    cannot: ClassVar[tuple[SearchFeature, ...]] = ()
    """Features of a search that it does not support: a job that has one is refused before anything runs."""
    whole: ClassVar[bool] = False
    """Its model needs points that all have the same parameters: one that does not exist in a trial counts as if it had
    its first value."""
    ranks_stopped: ClassVar[bool] = False
    """It learns from stopped trials, too, and ranks those that miss a constraint below them. To it, a trial that failed
    by its values looks like a stopped one that misses a constraint by more than any other; to other samplers, like a
    completed one that is worse than the worst."""
    avoids_failures: ClassVar[bool] = False
    """It draws at random around good points, and may draw anew: a point whose nearest trials failed by their values is
    refused."""
    blind: ClassVar[bool] = False
    """Its points depend on no result, so that they are known before a sweep begins."""
    memory: ClassVar[int | None] = None
    """How many ended trials it is shown: the latest, and of a single objective the best, too. None: all. For a sampler
    whose cost of a proposal grows with what it is shown. Running trials are always shown."""

    @abstractmethod
    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler | Mapping[str, Any] | None:
        """Return the Optuna sampler that draws the point, seeded; or the point itself, a value for every parameter
        that exists in it, others being ignored; or None when no point is left."""
