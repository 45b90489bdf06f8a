"""What Optuna samplers see of a sweep: a study in memory in which a trial is running or ended, and never changes after.

It holds the trials and their results, nothing that a sampler noted down while it drew: whatever a sampler decides
follows from what the archive holds, so a history built from the archive is as good as one that was there all along.
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
"""Stands in the journal for a miss of no finite amount: JSON knows none."""
STATES = {"COMPLETE": TrialState.COMPLETE, "STOPPED": TrialState.PRUNED}
"""By status of a record; any other is FAIL."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a trial ended, as Optuna puts it."""

    trial: int
    values: Mapping[str, Any]
    state: TrialState
    objectives: tuple[float, ...] | None = None
    """In the order of the job's; only of a trial that completed."""
    reports: Mapping[int, float] = field(default_factory=dict)
    """Held-out loss by thousandths of the judged compute; see `Report.share`."""
    misses: Mapping[str, float] = field(default_factory=dict)
    """Constraint -> by how much it is missed."""
    diverged: bool = False
    """It failed by its own values: its loss, or an objective, was no number."""

    def frozen(self, distributions: Mapping[str, BaseDistribution], **attributes: Any) -> FrozenTrial:
        """Return it as a trial of Optuna, with those of its values that lie in their distributions."""
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
    """The trials of one sweep in the order of their numbers, as long as they are added in it.

    Args:
        whole: the sampler learns from points that have every parameter; what a trial lacks is filled in.
    """

    def __init__(self, space: Space, objectives: int, *, whole: bool) -> None:
        optuna.logging.set_verbosity(logging.ERROR)
        self._space = space
        self._objectives = objectives
        self._filling = {p.path: p.corners()[0] for p in space.parameters} if whole else {}
        self._distributions = distributions_of(space)
        self._storage = optuna.storages.InMemoryStorage()
        directions = [optuna.study.StudyDirection.MINIMIZE] * objectives
        self._study = self._storage.create_new_study(directions, "raysweep")
        self._scratch = self._storage.create_new_study(directions, "scratch")
        self._ids: dict[int, int] = {}
        self._told = 0
        self._largest: dict[str, float] = {}

    def add(self, trial: int, values: Values) -> None:
        """Add a running trial."""
        running = Result(trial=trial, values={**self._filling, **values}, state=TrialState.RUNNING)
        self._ids[trial] = self._storage.create_new_trial(self._study, running.frozen(self._distributions))

    def end(self, result: Result) -> None:
        """Turn a running trial into an ended one."""
        storage, number = self._storage, self._ids[result.trial]
        if self._objectives == 1:  # with several, TPE cannot compare what stopped trials reported
            for step, loss in result.reports.items():
                storage.set_trial_intermediate_value(number, step, loss)
        comparable = replace(result, misses={name: self._finite(name, miss) for name, miss in result.misses.items()})
        for key, value in comparable.frozen({}).system_attrs.items():  # the constraints, as Optuna keeps them
            storage.set_trial_system_attr(number, key, value)
        storage.set_trial_user_attr(number, TOLD, self._told)
        storage.set_trial_user_attr(number, DIVERGED, result.diverged)
        storage.set_trial_state_values(number, result.state, result.objectives)
        self._told += 1

    def _finite(self, constraint: str, miss: float) -> float:
        """Return a miss, an infinite one as the largest so far: beside 1e9, all others would look equal to a model."""
        if math.isfinite(miss):
            self._largest[constraint] = max(self._largest.get(constraint, 0.0), abs(miss))
            return miss
        return math.copysign(self._largest.get(constraint) or 1.0, miss)

    def draw(self, sampler: optuna.samplers.BaseSampler, job: Mapping[str, Any]) -> Values:
        """Let a sampler draw a point. What it writes goes to a trial of another study, which nobody reads."""
        study = optuna.load_study(study_name="raysweep", storage=self._storage, sampler=sampler)
        scratch = self._storage.create_new_trial(self._scratch)
        trial = self._storage.get_trial(scratch)
        trial.number = len(self._ids)
        sampler.before_trial(study, trial)
        together = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))

        def pick(parameter: Parameter) -> Any:
            if parameter.count == 1:
                return parameter.value(0)
            if parameter.path in together:
                return _snapped(parameter, together[parameter.path])
            distribution = self._distributions[parameter.path]
            return _snapped(parameter, sampler.sample_independent(study, trial, parameter.path, distribution))

        return self._space.complete(job, pick)


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Return what Optuna draws each parameter from."""
    return {parameter.path: _distribution(parameter) for parameter in space.parameters}


def _distribution(parameter: Parameter) -> BaseDistribution:
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.form == "choice":
        return CategoricalDistribution(parameter.choices)
    if parameter.form == "integer":
        return IntDistribution(int(low), int(high), step=int(step or 1))
    if parameter.form == "uniform" and step is not None and _divides(step, low, high):
        return FloatDistribution(low, high, step=step)
    if (
        parameter.form == "log_uniform"
    ):  # wider by half a step where there is one: the ends are drawn as often as others
        wider = math.exp((step or 0.0) / 2)
        return FloatDistribution(low / wider, high * wider, log=True)
    return FloatDistribution(low - (step or 0.0) / 2, high + (step or 0.0) / 2)


def _lies_in(distribution: BaseDistribution, value: Any) -> bool:
    """Whether Optuna would take a value; that of a fork may be another one."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return isinstance(value, int | float) and distribution._contains(float(value))


def _divides(step: float, low: float, high: float) -> bool:
    """Whether Optuna can count from low to high: it does so in decimals."""
    return (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) == 0


def _snapped(parameter: Parameter, drawn: Any) -> Any:
    return drawn if parameter.form == "choice" else parameter.nearest(drawn)
