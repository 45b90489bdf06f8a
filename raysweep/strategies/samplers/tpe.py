"""Tree-structured Parzen estimator, multivariate, told of running trials (constant liar) and of stopped ones.

Parameters that exist together are modelled together; those under a condition from the trials that have them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep import contracts
from raysweep.contracts import Draw

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    startup_trials: int = 10
    """Trials drawn at random before the model is used."""

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group
            return optuna.samplers.TPESampler(
                n_startup_trials=self.startup_trials, multivariate=True, group=True, constant_liar=True, seed=draw.seed
            )
