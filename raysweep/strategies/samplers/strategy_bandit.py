"""A bandit over strategies: which combination of pruning, growth and initialisation is best, settings tuned beside it.

The first trials try every choice of each strategy once. From then on, what each choice adds to a trial's score is an
estimate with its uncertainty (strategy_effects.py), and a combination is chosen by top-two Thompson sampling: one that
may well be the best, or one that may beat it. Settings are drawn by TPE from all trials, each judged by what is left of
its score without its strategies' share, so that a good setting is seen under a bad strategy too.

Trials that were stopped count as worse than those that completed, those that miss a constraint as worse than these, and
those that diverged as worst of all. What failed for another reason, or was cancelled, says nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from raysweep import contracts
from raysweep.contracts import DIVERGED, Draw
from raysweep.job.checks.samplers import strategies_of
from raysweep.job.parameter import Parameter
from raysweep.meta.effects import Effects, normal_scores, posterior, top_two
from raysweep.strategies.samplers import tpe

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

DRAWS = 100
"""Of all effects: the challenger of the best combination is looked for in so many."""
Arm = dict[str, Any]
"""A combination: path -> choice of each strategy that exists beside the others."""


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    exploration: Annotated[float, Field(ge=0.1, le=1)] = 0.1
    """Share of points drawn as `random` would, to the end: none is ever given up, and some trials are always fair."""
    leader: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the others that goes to what may be the best combination; the rest, to one that may beat it."""
    startup_trials: int = 10
    """Ended trials before settings are drawn by TPE."""

    cannot = ("strategies", "objectives")

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        return _told_by_the_study()(self, draw)

    def held(self, draw: Draw, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return what is chosen for a point: strategies, and settings where they are not left to chance.

        Args:
            trials: all of the sweep, running ones too.
        """
        generator = np.random.default_rng(draw.seed)
        arms = arms_of(draw)
        fewest = least_tried(draw, arms, trials)
        if fewest:
            return fewest[generator.integers(len(fewest))]
        if generator.random() < self.exploration:
            return {}
        strategies = [one.path for one in strategies_of(draw.space)]
        ended = [trial for trial in trials if _teaches(trial)]
        effects = Effects(draw.space.parameters, strategies)
        scores = normal_scores([_standing(trial) for trial in ended])
        known = posterior(effects.rows([trial.params for trial in ended]), scores, effects.variances)
        worths = known.draw(DRAWS, generator) @ effects.rows(arms).T
        decided = [{path: trial.params[path] for path in strategies if path in trial.params} for trial in ended]
        left = scores - effects.rows(decided) @ known.mean
        return self._settings(draw, ended, left, trials) | arms[top_two(worths, self.leader, generator)]

    def _settings(
        self, draw: Draw, ended: Sequence[FrozenTrial], left: Any, trials: Sequence[FrozenTrial]
    ) -> dict[str, Any]:
        """Draw all settings by TPE, which sees what is `left` of the scores of ended trials, and running ones."""
        import optuna
        from optuna.trial import TrialState, create_trial

        from raysweep.sweep.history import distributions_of

        strategies = {one.path for one in strategies_of(draw.space)}
        free = {path: one for path, one in distributions_of(draw.space).items() if path not in strategies}
        study = optuna.create_study(
            direction="maximize", sampler=tpe.Sampler(startup_trials=self.startup_trials).propose(draw)
        )
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for trial, score in [*zip(ended, left, strict=True), *((trial, None) for trial in running)]:
            params = {path: value for path, value in trial.params.items() if path in free}
            study.add_trial(
                create_trial(
                    state=TrialState.RUNNING if score is None else TrialState.COMPLETE,
                    value=score,
                    params=params,
                    distributions={path: free[path] for path in params},
                )
            )
        return study.ask(free).params


def arms_of(draw: Draw) -> list[Arm]:
    """Return every combination of strategies that can exist; one whose condition is on a setting can."""
    strategies = strategies_of(draw.space)
    settings = {*draw.space.paths} - {one.path for one in strategies}
    arms: list[Arm] = [{}]
    for one in strategies:
        known = replace(one, conditions=tuple(c for c in one.conditions if c.path not in settings))
        arms = [grown for arm in arms for grown in _grown(arm, known, draw)]
    return arms


def _grown(arm: Arm, strategy: Parameter, draw: Draw) -> list[Arm]:
    if not draw.space.active(strategy, arm, draw.job):
        return [arm]
    return [{**arm, strategy.path: choice} for choice in strategy.choices]


def least_tried(draw: Draw, arms: Sequence[Arm], trials: Sequence[FrozenTrial]) -> list[Arm]:
    """Return the arms of the least tried choices; none once every choice that always exists was tried and one ended.

    Tried is what a trial has, even if it still runs or failed: lanes do not try the same at once, and a choice that
    always fails does not look new for ever.
    """
    strategies = strategies_of(draw.space)
    tried = Counter((path, repr(value)) for trial in trials for path, value in trial.params.items())
    always = [(one.path, repr(choice)) for one in strategies if not one.conditions for choice in one.choices]
    if all(tried[choice] for choice in always) and any(_teaches(trial) for trial in trials):
        return []
    found = list(arms)
    for one in strategies:
        times = [tried[one.path, repr(arm[one.path])] for arm in found if one.path in arm]
        found = [arm for arm in found if one.path not in arm or tried[one.path, repr(arm[one.path])] == min(times)]
    return found


def _standing(trial: FrozenTrial) -> tuple[float, ...]:
    """Return what orders ended trials, best first; equal for those between which nothing can be said."""
    from optuna.trial import TrialState

    miss = sum(max(amount, 0.0) for amount in trial.constraints.values())
    if trial.state == TrialState.FAIL:
        return (3,)
    if miss > 0:
        return (2, miss)
    if trial.state == TrialState.PRUNED:  # as for TPE: who came further is better, then who had the lower loss
        reached, loss = max(trial.intermediate_values.items(), default=(0, math.inf))
        return (1, -reached, loss)
    assert trial.value is not None
    return (0, trial.value)


def _teaches(trial: FrozenTrial) -> bool:
    from optuna.trial import TrialState

    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or trial.user_attrs.get(DIVERGED, False)


def _told_by_the_study() -> Any:
    """Return an Optuna sampler, which alone sees how every trial ended; a function, to import it late."""
    import optuna

    class ToldByTheStudy(optuna.samplers.BaseSampler):
        def __init__(self, sampler: Sampler, draw: Draw) -> None:
            self._sampler, self._draw = sampler, draw
            self._random = optuna.samplers.RandomSampler(seed=draw.seed)

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, Any]) -> dict[str, Any]:
            return self._sampler.held(self._draw, study.get_trials(deepcopy=False))

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self._random.sample_independent(study, trial, name, distribution)

    return ToldByTheStudy
