"""Remove the heads with the lowest weighted sum of other scores, each brought to [0, 1] over the model's heads.

`scale: rank` replaces a score by the head's rank among all present heads (ties share their mean rank), `minmax` maps
the lowest to 0 and the highest to 1; both over the whole model, so that layers stay comparable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from raysweep import contracts
from raysweep.contracts import Array, HeadStatistics, Mask
from raysweep.errors import known_names_hint
from raysweep.job import bounds
from raysweep.networks.plasticity.ranking import average_ranks
from raysweep.strategies.prune import activation, contribution, entropy, fisher, magnitude, taylor

# Imported, not looked up by name: a phase's key holds the code of the strategies that a file imports (job/code.py).
SCORES: dict[str, contracts.Pruner] = {
    "activation": activation.Pruner(),
    "contribution": contribution.Pruner(),
    "entropy_high": entropy.Pruner(direction="high"),
    "entropy_low": entropy.Pruner(direction="low"),
    "fisher": fisher.Pruner(),
    "magnitude": magnitude.Pruner(),
    "magnitude_ov": magnitude.Pruner(form="ov"),
    "magnitude_qk": magnitude.Pruner(form="qk"),
    "sink_free_entropy_high": entropy.Pruner(direction="high", sink_free=True),
    "sink_free_entropy_low": entropy.Pruner(direction="low", sink_free=True),
    "taylor": taylor.Pruner(),
}
"""The scores that can be weighted: name -> the strategy that computes it."""


def _checked(weights: dict[str, float]) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in SCORES:
            raise ValueError(known_names_hint(name, SCORES))
        if not 0 < weight <= bounds.NORM:
            raise ValueError(f"{name} = {weight} must be a positive number, at most {bounds.NORM:g}")
    if not weights:
        raise ValueError("name at least one score")
    return weights


@dataclass(frozen=True, kw_only=True)
class Pruner(contracts.Pruner):
    weights: Annotated[dict[str, float], AfterValidator(_checked)] = field(
        metadata={
            "help": "say what each score weighs, such as {taylor: 1.0, magnitude: 0.5}",
            "example": {"taylor": 1.0, "magnitude": 0.5},
        }
    )
    scale: Literal["rank", "minmax"] = "rank"
    """How each score is brought to [0, 1] before it is weighted."""

    @property
    def requires(self) -> tuple[str, ...]:
        return tuple(sorted({statistic for name in self.weights for statistic in SCORES[name].requires}))

    def __call__(self, statistics: HeadStatistics, generator: np.random.Generator) -> Array:
        to_unit = _ranked if self.scale == "rank" else _stretched
        total = np.zeros(statistics.present.shape)
        # Sorted, because the order of a floating-point sum shows in its last digits: two jobs that list the
        # same weights in another order must remove the same heads.
        for name, weight in sorted(self.weights.items()):
            scores = SCORES[name](statistics, generator)
            total += weight * to_unit(scores, statistics.present)
        return total


def _ranked(scores: Array, present: Mask) -> Array:
    ranks = np.zeros(scores.shape)
    # The highest rank among n heads is n - 1; a single head has rank 0, and nothing to divide by.
    ranks[present] = average_ranks(scores[present]) / max(1, present.sum() - 1)
    return ranks


def _stretched(scores: Array, present: Mask) -> Array:
    low, high = scores[present].min(), scores[present].max()
    # Where all scores are equal the range is 0: dividing by 1 instead leaves them all at 0.
    return np.where(present, (scores - low) / (high - low or 1.0), 0.0)
