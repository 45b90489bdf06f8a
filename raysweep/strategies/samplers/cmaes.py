"""Covariance matrix adaptation: follows the slope of a loss in ranges, with trials by the hundred.

Each `population` of completed trials, in the order in which they ended, moves the distribution that the next points
come from; with several lanes, some of them were drawn one distribution earlier. Nothing but these trials is kept.
(Optuna's sampler keeps its state with the trials that it proposed, where a resumed sweep could not find it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import Draw

BELOW_ONE = 1 - 1e-12


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    population: Annotated[int, Field(ge=2)] | None = None
    """Completed trials that make a step. Default: 4 + 3 ln(parameters), rounded down."""
    sigma: Annotated[float, Field(gt=0, le=1)] = 1 / 6
    """Standard deviation at the start, as a share of each range; the mean is in the middle."""

    cannot = ("choice", "condition", "objectives", "constraints")

    def propose(self, draw: Draw) -> Mapping[str, Any]:
        import cmaes
        import numpy as np

        ranges = draw.space.parameters
        optimizer = cmaes.CMA(
            mean=np.full(len(ranges), 0.5), sigma=self.sigma, bounds=np.array([(0.0, 1.0)] * len(ranges)),
            population_size=self.population, seed=draw.seed % 2**32,
        )  # fmt: skip
        told = [(np.array([p.share(values[p.path]) for p in ranges]), loss) for values, (loss,) in draw.told]
        size = optimizer.population_size
        for at in range(0, len(told) - size + 1, size):
            optimizer.tell(told[at : at + size])
        shares = np.minimum(optimizer.ask(), BELOW_ONE)
        return {parameter.path: parameter.at(float(share)) for parameter, share in zip(ranges, shares, strict=True)}
