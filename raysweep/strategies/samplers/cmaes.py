"""Covariance matrix adaptation: follows the slope of a loss in ranges, with trials by the hundred.

CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772). Each `population` of completed trials, in
the order in which they ended, moves the distribution that the next points are drawn from; with several lanes, some of
these trials were drawn from the distribution before it. A trial that
failed by its values counts as worse than all others. Nothing but the results is kept. (Optuna's sampler
keeps its state with the trials that it proposed, where a resumed sweep could not find it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import Draw
from raysweep.job import bounds

BELOW_ONE = 1 - 1e-12
"""Largest share of a range: `Parameter.at` takes shares in [0, 1), and a draw can lie on the upper bound."""


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    population: Annotated[int, Field(ge=2, le=bounds.POPULATION)] | None = None
    """Completed trials that move the distribution once. Default: 4 + 3 ln(parameters), rounded down."""
    sigma: Annotated[float, Field(gt=0, le=1)] = 1 / 6
    """Standard deviation at the start, as a share of each range; the mean is in the middle."""

    # A point must be a vector of numbers, of the same length in every trial, and a trial must have one loss.
    cannot = ("choice", "condition", "objectives", "constraints")
    avoids_failures = True

    def propose(self, draw: Draw) -> Mapping[str, Any]:
        import cmaes
        import numpy as np

        # All parameters are scaled to [0, 1], so that one standard deviation fits ranges of any unit. The
        # seed is the draw's own: with a common seed every trial of a population would get the same point.
        ranges = draw.space.parameters
        optimizer = cmaes.CMA(
            mean=np.full(len(ranges), 0.5), sigma=self.sigma, bounds=np.array([(0.0, 1.0)] * len(ranges)),
            population_size=self.population, seed=draw.seed % 2**32,
        )  # fmt: skip
        told = [(np.array([p.share(values[p.path]) for p in ranges]), loss) for values, (loss,) in draw.told]
        # The whole search is run again for each draw, so a resumed sweep has the same distribution. Trials
        # that do not fill a population yet wait for the rest of it.
        size = optimizer.population_size
        for at in range(0, len(told) - size + 1, size):
            optimizer.tell(told[at : at + size])
        shares = np.minimum(optimizer.ask(), BELOW_ONE)
        return {parameter.path: parameter.at(float(share)) for parameter, share in zip(ranges, shares, strict=True)}
