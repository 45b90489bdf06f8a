"""The study that Optuna samplers see: the trials of a sweep in memory, running or ended.

It holds the trials and their results, and nothing that a sampler stored while it drew. So whatever a sampler decides
follows from the archive, and a history that is built anew from it is as good as one that was there all along.
"""

from __future__ import annotations

import copy
import logging
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysweep.contracts import FAILED, TOLD
from raysweep.job.parameter import Parameter
from raysweep.job.space import Space, Values
from raysweep.sweep.worst import Worst

ENDLESS = 1e9
"""Stands for an infinite violation in the journal, since JSON has no infinity."""
BEST = 25
"""Best trials that a sampler of limited memory is shown, however old they are: as many as TPE learns from."""
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
    failed: bool = False
    """It failed by its values: its loss, or an objective, was no number, or it could not be carried out."""

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


class _Storage(optuna.storages.InMemoryStorage):
    """Shows samplers the trials of a history, and keeps what samplers write apart from them.

    Args:
        shown: returns the trials, by rising numbers.
    """

    def __init__(self, shown: Callable[[], list[FrozenTrial]]) -> None:
        super().__init__()
        self._shown = shown

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self._shown() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


class History:
    """The trials of one sweep. They must be added by rising numbers.

    Args:
        objectives: how many there are.
        whole: the sampler learns from points that have every parameter; those that a trial lacks are filled in.
        ranks_stopped: the sampler ranks stopped trials, too; see `contracts.Sampler`.
        memory: how many ended trials the sampler is shown; None: all.
    """

    def __init__(
        self, space: Space, objectives: int, *, whole: bool, ranks_stopped: bool, memory: int | None = None
    ) -> None:
        # Optuna logs a line for each study and trial.
        optuna.logging.set_verbosity(logging.ERROR)
        self._space = space
        self._single, self._ranks_stopped = objectives == 1, ranks_stopped
        self._filling = {p.path: p.corners()[0] for p in space.parameters} if whole else {}
        self._distributions = distributions_of(space)
        self._shown: list[FrozenTrial] = []
        self._storage = _Storage(lambda: self._shown)
        directions = [optuna.study.StudyDirection.MINIMIZE] * objectives
        self._storage.create_new_study(directions, "raysweep")
        # For the trials that samplers draw in; see `draw`.
        self._scratch = self._storage.create_new_study(directions, "scratch")
        self._trials: dict[int, FrozenTrial] = {}
        self._memory = memory
        self._running_ones: set[int] = set()
        self._latest: deque[int] = deque(maxlen=memory)
        """Ended trials in the order of their results."""
        self._best: list[tuple[float, int]] = []
        """Objective and number of each completed trial, sorted; of a single objective only."""
        self._failed: dict[int, Result] = {}
        self._worst = Worst(objectives)
        self._told = 0

    def add(self, trial: int, values: Values) -> None:
        """Add a running trial."""
        self._trials[trial] = self._running(values, len(self._trials))
        self._running_ones.add(trial)

    def end(self, result: Result) -> None:
        """Turn a running trial into an ended one."""
        grown = self._worst.note(result.objectives or (), result.misses)
        result = replace(
            result,
            values=self._trials[result.trial].params,
            # With several objectives, TPE cannot compare what stopped trials reported.
            reports=result.reports if self._single else {},
            misses={name: self._worst.finite(name, miss) for name, miss in result.misses.items()},
        )
        if result.failed:
            self._failed[result.trial] = result
        self._replace(self._seen(result), told=self._told, failed=result.failed)
        self._told += 1
        self._running_ones.discard(result.trial)
        self._latest.append(result.trial)
        if self._single and result.objectives is not None and max(result.misses.values(), default=0.0) <= 0:
            insort(self._best, (result.objectives[0], result.trial))
        # What was worse than all results may be so no longer.
        for failed in self._failed.values() if grown and not self._ranks_stopped else ():
            told = self._trials[failed.trial].user_attrs[TOLD]
            self._replace(self._seen(failed), told=told, failed=True)

    def _seen(self, result: Result) -> Result:
        """Return a result as the sampler sees it: of a trial that failed by its values, one that is worse than all."""
        if not result.failed:
            return result
        if self._ranks_stopped:
            return replace(result, state=TrialState.PRUNED, reports={}, misses={FAILED: ENDLESS})
        worst = self._worst
        return replace(result, state=TrialState.COMPLETE, reports={}, objectives=worst.objectives, misses=worst.misses)

    def _replace(self, result: Result, *, told: int, failed: bool) -> None:
        earlier = self._trials[result.trial]
        self._trials[result.trial] = self._numbered(result, earlier.number, **{TOLD: told, FAILED: failed})

    def _remembered(self) -> list[FrozenTrial]:
        if self._memory is None:
            return list(self._trials.values())
        best = [trial for _, trial in self._best[:BEST]]
        return [self._trials[trial] for trial in sorted({*self._running_ones, *self._latest, *best})]

    def _running(self, values: Values, number: int) -> FrozenTrial:
        # The trial's own values win over the fillings.
        running = Result(trial=number, values={**self._filling, **values}, state=TrialState.RUNNING)
        return self._numbered(running, number)

    def _numbered(self, result: Result, number: int, **attributes: Any) -> FrozenTrial:
        trial = result.frozen(self._distributions, **attributes)
        # As a storage of Optuna numbers them; samplers name trials by their ids in what they write.
        trial.number = trial._trial_id = number
        return trial

    def draw(
        self, sampler: optuna.samplers.BaseSampler, job: Mapping[str, Any], refused: Sequence[Values] = ()
    ) -> Values:
        """Let a sampler draw a point.

        Args:
            refused: points that it drew for this trial before. It sees them as running trials, from which samplers
                keep away.
        """
        others = [self._running(values, len(self._trials) + 1 + at) for at, values in enumerate(refused)]
        self._shown = [*self._remembered(), *others]
        # Samplers write into the trial that they draw for. That goes to a trial of another study, which nothing reads:
        # a history built anew from the archive would lack it.
        study = optuna.load_study(study_name="raysweep", storage=self._storage, sampler=sampler)
        scratch = self._storage.create_new_trial(self._scratch)
        trial = self._storage.get_trial(scratch)
        # A sampler may look at the trial's number: that of the next trial of the sweep, not of the scratch study.
        trial.number = len(self._trials)
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
