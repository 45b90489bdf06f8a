"""Gaussian process with expected improvement: few, expensive trials. A proposal takes seconds.

It learns from completed trials only, and waits for none: running ones count as what it expects of them.
"""

from __future__ import annotations

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

    whole = True

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.GPSampler(
            seed=draw.seed, n_startup_trials=self.startup_trials, warn_independent_sampling=False
        )
