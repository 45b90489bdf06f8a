"""Tree-structured Parzen estimator, multivariate; running trials (constant liar) and stopped ones count, too.

Of a long sweep it sees the 25 best and the 500 latest results (of several objectives the latest alone), so that a
proposal takes as long for trial 10,000 as for trial 1,000. Parameters that exist together are modelled together; those
under a condition from the trials that have them. (Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
NeurIPS 2011; multivariate as in BOHB, Falkner et al., ICML 2018.)
"""

from __future__ import annotations

import warnings
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

    ranks_stopped = True
    avoids_failures = True
    # Of all it is shown, Optuna takes no more than the 25 best as good, and all others only as what is usual.
    memory = 500

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        import optuna

        # Optuna calls `group` experimental. Without it, only parameters that every trial has would be
        # modelled together. `constant_liar` counts running trials as bad ones, so that parallel lanes do
        # not all try the same region.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                n_startup_trials=self.startup_trials, multivariate=True, group=True, constant_liar=True, seed=draw.seed
            )
