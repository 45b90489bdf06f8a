"""Quasi-random points, which fill the space more evenly than random ones: a scrambled Sobol or Halton sequence.

Trial n gets the n-th point, whatever ran before. Every parameter has a dimension of its own, so parameters under a
condition are spread evenly, too. (Optuna's sampler counts the points of its study, and draws such parameters at
random.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raysweep import contracts
from raysweep.contracts import Draw


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    sequence: Literal["sobol", "halton"] = "sobol"
    """Sobol is most even after 2, 4, 8, ... trials; Halton prefers no number of trials."""

    blind = True

    def propose(self, draw: Draw) -> Mapping[str, Any]:
        from scipy.stats import qmc

        # `sequence` is the same for all trials, so all of them take their points from one scrambled sequence.
        engine = {"sobol": qmc.Sobol, "halton": qmc.Halton}[self.sequence]
        points = engine(len(draw.space.parameters), scramble=True, rng=draw.sequence)
        # scipy cannot go forward by 0 points.
        if draw.trial > 1:
            points.fast_forward(draw.trial - 1)
        shares = points.random(1)[0]
        return {
            parameter.path: parameter.at(float(share))
            for parameter, share in zip(draw.space.parameters, shares, strict=True)
        }
