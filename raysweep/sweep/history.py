"""The study that Optuna samplers see: the trials of a sweep in memory, running or ended.

It holds the trials and their results, and nothing that a sampler stored while it drew. So whatever a sampler decides
follows from the archive, and a history that is built anew from it is as good as one that was there all along.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysweep.contracts import DIVERGED, TOLD
from raysweep.job.parameter import Parameter
from raysweep.job.space import Space, Values

ENDLESS = 1e9
"""Stands for an infinite violation in the journal, since JSON has no infinity."""
STATES = {"COMPLETE": TrialState.COMPLETE, "STOPPED": TrialState.PRUNED}
"""Status of a record -> Optuna's state; FAIL for any other status."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a trial ended, in Optuna's terms."""

    trial: int
    values: Mapping[str, Any]
    state: TrialState
    objectives: tuple[float, ...] | None = None
    """In the order of the job's; None if the trial did not complete."""
    reports: Mapping[int, float] = field(default_factory=dict)
    """Held-out loss by thousandths of the judged compute; see `Report.share`."""
    misses: Mapping[str, float] = field(default_factory=dict)
    """Constraint -> by how much it is violated; at most 0 where it is kept."""
    diverged: bool = False
    """It failed because of its values: its loss, or an objective, was not a number."""

    def frozen(self, distributions: Mapping[str, BaseDistribution], **attributes: Any) -> FrozenTrial:
        """Return it as a trial of Optuna, with those of its values that lie in their distributions."""
        # A fork may have values outside the space, on which Optuna would raise an error.
        params = {
            path: value for path, value in self.values.items()
            if path in distributions and _lies_in(distributions[path], value)
        }  # fmt: skip
        return create_trial(
            state=self.state,
            values=self.objectives,
            params=params,
            distributions={path: distributions[path] for path in params},
            user_attrs=attributes,
            intermediate_values=dict(self.reports),
            constraints={name: min(max(miss, -ENDLESS), ENDLESS) for name, miss in self.misses.items()} or None,
        )


class History:
    """The trials of one sweep. They must be added by rising numbers.

    Args:
        objectives: how many there are.
        whole: the sampler learns from points that have every parameter; those that a trial lacks are filled in.
    """

    def __init__(self, space: Space, objectives: int, *, whole: bool) -> None:
        # Optuna logs a line for each study and trial.
        optuna.logging.set_verbosity(logging.ERROR)
        self._space = space
        self._objectives = objectives
        self._filling = {p.path: p.corners()[0] for p in space.parameters} if whole else {}
        self._distributions = distributions_of(space)
        self._storage = optuna.storages.InMemoryStorage()
        directions = [optuna.study.StudyDirection.MINIMIZE] * objectives
        self._study = self._storage.create_new_study(directions, "raysweep")
        # For the trials that samplers draw in; see `draw`.
        self._scratch = self._storage.create_new_study(directions, "scratch")
        self._ids: dict[int, int] = {}
        self._told = 0
        self._largest: dict[str, float] = {}

    def add(self, trial: int, values: Values) -> None:
        """Add a running trial."""
        # The trial's own values win over the fillings.
        running = Result(trial=trial, values={**self._filling, **values}, state=TrialState.RUNNING)
        self._ids[trial] = self._storage.create_new_trial(self._study, running.frozen(self._distributions))

    def end(self, result: Result) -> None:
        """Turn a running trial into an ended one."""
        storage, number = self._storage, self._ids[result.trial]
        # With several objectives, TPE cannot compare what stopped trials reported.
        if self._objectives == 1:
            for step, loss in result.reports.items():
                storage.set_trial_intermediate_value(number, step, loss)
        comparable = replace(result, misses={name: self._finite(name, miss) for name, miss in result.misses.items()})
        # Optuna keeps constraints in system attributes, whose form create_trial knows.
        for key, value in comparable.frozen({}).system_attrs.items():
            storage.set_trial_system_attr(number, key, value)
        storage.set_trial_user_attr(number, TOLD, self._told)
        storage.set_trial_user_attr(number, DIVERGED, result.diverged)
        # Last: Optuna refuses to change a trial that has ended.
        storage.set_trial_state_values(number, result.state, result.objectives)
        self._told += 1

    def _finite(self, constraint: str, miss: float) -> float:
        """Clip an infinite violation to the largest finite one; a huge constant would flatten the others."""
        if math.isfinite(miss):
            self._largest[constraint] = max(self._largest.get(constraint, 0.0), abs(miss))
            return miss
        return math.copysign(self._largest.get(constraint) or 1.0, miss)

    def draw(self, sampler: optuna.samplers.BaseSampler, job: Mapping[str, Any]) -> Values:
        """Let a sampler draw a point."""
        # Samplers write into the trial that they draw for. That goes to a trial of another study, which nothing reads:
        # a history built anew from the archive would lack it.
        study = optuna.load_study(study_name="raysweep", storage=self._storage, sampler=sampler)
        scratch = self._storage.create_new_trial(self._scratch)
        trial = self._storage.get_trial(scratch)
        # A sampler may look at the trial's number: that of the next trial of the sweep, not of the scratch study.
        trial.number = len(self._ids)
        sampler.before_trial(study, trial)
        together = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))

        def pick(parameter: Parameter) -> Any:
            # Optuna leaves parameters of a single value out of what it samples relatively.
            if parameter.count == 1:
                return parameter.value(0)
            if parameter.path in together:
                return _snapped(parameter, together[parameter.path])
            distribution = self._distributions[parameter.path]
            return _snapped(parameter, sampler.sample_independent(study, trial, parameter.path, distribution))

        return self._space.complete(job, pick)


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Return the Optuna distribution of each parameter, by path."""
    return {parameter.path: _distribution(parameter) for parameter in space.parameters}


def _distribution(parameter: Parameter) -> BaseDistribution:
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.form == "choice":
        return CategoricalDistribution(parameter.choices)
    if parameter.form == "integer":
        return IntDistribution(int(low), int(high), step=int(step or 1))
    if parameter.form == "uniform" and step is not None and _divides(step, low, high):
        return FloatDistribution(low, high, step=step)
    # Continuous, and wider by half a step where there is one: the nearest step is taken afterwards, and so the ends
    # come as often as other values.
    if parameter.form == "log_uniform":
        wider = math.exp((step or 0.0) / 2)
        return FloatDistribution(low / wider, high * wider, log=True)
    return FloatDistribution(low - (step or 0.0) / 2, high + (step or 0.0) / 2)


def _lies_in(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a distribution holds a value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    # Private, but the check that Optuna itself makes; a public one does not exist.
    return isinstance(value, int | float) and distribution._contains(float(value))


def _divides(step: float, low: float, high: float) -> bool:
    """Return whether steps lead from low to high exactly, as Optuna requires."""
    # In decimals, as Optuna counts: 0.1 three times is 0.3 there, and not as floats.
    return (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) == 0


def _snapped(parameter: Parameter, drawn: Any) -> Any:
    return drawn if parameter.form == "choice" else parameter.nearest(drawn)
