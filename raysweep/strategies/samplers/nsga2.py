"""NSGA-II: an evolution of points towards the whole Pareto front of several objectives, with trials by the hundred.

Generation g is the g-th `population` of completed trials, in the order in which they ended; the first is random.
(Optuna's own keeps generations with the trials that it proposed, where a resumed sweep could not find them.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import TOLD, Draw

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    population: Annotated[int, Field(ge=2)] = 20
    """Completed trials of a generation."""
    crossover: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Probability that a point has two parents."""

    whole = True

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        return _by_order_of_results()(population_size=self.population, crossover_prob=self.crossover, seed=draw.seed)


def _by_order_of_results() -> Any:
    """Return Optuna's sampler with generations that follow from the trials alone; a function, to import it late."""
    import optuna

    class ByOrderOfResults(optuna.samplers.NSGAIISampler):
        def get_trial_generation(self, study: Any, trial: Any) -> int:
            return len(_completed(study)) // self.population_size

        def get_population(self, study: Any, generation: int) -> list[Any]:
            first = generation * self.population_size
            return _completed(study)[first : first + self.population_size]

        def get_parent_population(self, study: Any, generation: int) -> list[Any]:
            found = super().get_parent_population(study, generation)  # kept by generation: the study's past is fixed
            return sorted(found, key=lambda trial: trial.number)

    return ByOrderOfResults


def _completed(study: Any) -> list[Any]:
    import optuna

    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return sorted(trials, key=lambda trial: trial.user_attrs[TOLD])
