"""NSGA-II: an evolution of points towards the whole Pareto front of several objectives, with trials by the hundred.

Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE Transactions on Evolutionary
Computation, 2002. Generation g is the g-th `population` of completed trials, in the order in which they ended; the
first is random. (Optuna's own sampler keeps generations with the trials that it proposed, where a resumed sweep could
not find them.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import TOLD, Draw
from raysweep.job import bounds

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    population: Annotated[int, Field(ge=2, le=bounds.POPULATION)] = 20
    """Completed trials of a generation."""
    crossover: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Probability that a point has two parents."""

    # Optuna crosses the parameters that every trial has, and would draw all others at random.
    whole = True
    avoids_failures = True

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        sampler = _by_order_of_results(self.population)
        return sampler(population_size=self.population, crossover_prob=self.crossover, seed=draw.seed)


def _by_order_of_results(population: int) -> type[optuna.samplers.NSGAIISampler]:
    """Return a subclass of Optuna's sampler whose generations follow from the completed trials alone."""
    # Inside a function, because Optuna takes long to import and most commands draw no point.
    import optuna

    class ByOrderOfResults(optuna.samplers.NSGAIISampler):
        def get_trial_generation(self, study: Any, trial: Any) -> int:
            return len(_completed(study)) // population

        def get_population(self, study: Any, generation: int) -> list[Any]:
            first = generation * population
            return _completed(study)[first : first + population]

        def get_parent_population(self, study: Any, generation: int) -> list[Any]:
            # Optuna stores the parents of a generation when they are first asked for. That is safe: trials
            # that have ended stay as they are, so a study that is built anew selects the same ones.
            found = super().get_parent_population(study, generation)
            return sorted(found, key=lambda trial: trial.number)

    return ByOrderOfResults


def _completed(study: Any) -> list[Any]:
    import optuna

    # By the order of results, not by number: with several lanes, later trials may end first.
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return sorted(trials, key=lambda trial: trial.user_attrs[TOLD])
