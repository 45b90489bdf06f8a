"""The contracts of strategies that prune, grow and initialise heads, and the statistics that they decide on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np

from raysweep.contracts.arrays import Array, Mask, Slot
from raysweep.contracts.families import Role

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class HeadStatistics:
    """What the probe measured on every head slot; arrays of shape [layers][heads].

    `present` says which slots hold a head. Statistics of absent slots are those of the weights that stand there,
    as if the head were there alone; `sensitivity` is only filled when a growth asks for it.

    This is the one list of head statistics: records, probe and analyses take their names from these fields. A field
    with `mean_over` is a mean, which the probe sums over batches and ranks and divides by that count.
    """

    present: Mask
    taylor: Array = field(metadata={"mean_over": "windows"})
    """E over windows of |d(mean window loss) / d(gate)|."""
    fisher: Array = field(metadata={"mean_over": "windows"})
    """E over windows of (d(mean window loss) / d(gate))^2; half of it is a removal's cost at a stationary point."""
    signed_taylor: Array = field(metadata={"mean_over": "windows"})
    """-E over windows of d(mean window loss) / d(gate): to first order, a removal's cost with its sign."""
    entropy: Array = field(metadata={"mean_over": "queries"})
    """Mean over queries with at least two visible keys of H / log(visible keys); in [0, 1]."""
    sink_mass: Array = field(metadata={"mean_over": "queries"})
    """Mean attention weight on the first token, over the same queries."""
    sink_free_entropy: Array = field(metadata={"mean_over": "sink_free_queries"})
    """As `entropy`, of the weights on all keys but the first token, over queries with at least three visible keys."""
    output_norm: Array = field(metadata={"mean_over": "tokens"})
    """Mean over tokens of the norm of the head's contribution to the layer's output."""
    magnitude: Array
    """Frobenius norm of [W_Q, W_K, W_V, W_O^T]; see networks/plasticity/magnitude.py for the three."""
    magnitude_ov: Array
    """Frobenius norm of diag(g) W_V W_O, g the gain of the norm in front."""
    magnitude_qk: Array
    """Frobenius norm of diag(g) W_Q W_K^T diag(g)."""
    contribution: Array | None = None
    """Mean over windows of the loss without the head minus the loss with it; only filled when asked for."""
    reference_entropy: Array | None = None
    """Entropy of every head just before this cycle's prune."""
    sensitivity: Array | None = None
    """How much an absent slot would lower the loss if its proposed weights came in; see
    strategies/grow/gradient_sensitivity."""


# The fields without a default are those that every probe fills; `present` is no measurement. Their order is
# the order of the statistics in a phase record, so a new statistic goes last.
HEAD_STATISTICS = tuple(
    entry.name for entry in fields(HeadStatistics) if entry.default is MISSING and entry.name != "present"
)
"""Names of the statistics that one forward and backward pass measures."""


HEAD_STATISTICS_ON_DEMAND = ("contribution",)
"""Names of those that take a forward pass a head, and are measured only when a strategy or a job asks for them."""


class Pruner(Protocol):
    """strategies/prune/<name>.py: how important each head is; the least important are removed."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Which of HEAD_STATISTICS_ON_DEMAND it reads. Default: none."""
        return ()

    @abstractmethod
    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        """Return importance [layers][heads]; the lowest present ones are removed first. Changes nothing itself."""


class Grower(Protocol):
    """strategies/grow/<name>.py: which absent slots get a new head."""

    @abstractmethod
    def __call__(self, statistics: HeadStatistics, count: int, generator: np.random.Generator) -> list[Slot]:
        """Return exactly `count` distinct absent slots, best first. Changes nothing itself."""


SensitivityForm = Literal["gate", "output", "gradmax"]
"""Which gradient tells how much a new head would help; see probe and growth_probe in networks/plasticity/."""


@dataclass(frozen=True, kw_only=True)
class NewSlice:
    """One tensor of a new head, whatever the layout of its layer, and what it may be filled from."""

    role: Role
    weights: torch.Tensor
    """To be filled in place: a view of shape (head_dim, width), or (head_dim,) for a bias."""
    # A mean-zero normal distribution of this width is how the model's own weights began.
    std: float
    """The model's own initializer range."""
    generator: torch.Generator
    """Of this slice alone, on the CPU: the draws depend neither on the order of new heads nor on how many there are."""
    given: torch.Tensor | None = None
    """What the initializer needs, of the shape of `weights`: the donor's slice, a view to be changed in place; the
    weights of this slice right before it was last removed; for value weights only, their directions, scaled."""


class Initializer(Protocol):
    """strategies/init/<name>.py: the weights that a new head starts with."""

    forms: ClassVar[tuple[SensitivityForm, ...]]
    """Forms of gradient_sensitivity that are not identically zero under it; the first is the default."""
    needs: ClassVar[Literal["nothing", "donor", "stored", "directions"]]
    """What `NewSlice.given` holds."""

    @abstractmethod
    def __call__(self, new: NewSlice) -> None:
        """Fill one slice of a new head. A shared key or value is only filled where its whole group was absent.

        Moments of the slice are zero, or seeded from its peers where `cycle.learn.seed_second_moments` says so.
        """
