"""Gaussian process with expected improvement: few, expensive trials. A proposal takes seconds.

It learns from completed trials only, and waits for none: for running ones it assumes what its model predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import Draw
from raysweep.job import bounds

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    startup_trials: Annotated[int, Field(ge=1, le=bounds.TRIALS)] = 10
    """Trials drawn at random before the model is used."""

    # Optuna models the parameters that every trial has, and would draw all others at random.
    whole = True

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.GPSampler(
            seed=draw.seed, n_startup_trials=self.startup_trials, warn_independent_sampling=False
        )
