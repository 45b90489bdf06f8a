"""A bandit over strategies: which combination of pruning, growth and initialisation is best, settings tuned beside it.

The first trials try every choice of each strategy once. From then on, a regression estimates what each choice adds to
a trial's score, and how uncertain that is (meta/effects.py). A combination is chosen by top-two Thompson sampling:
one that is probably the best, or one that may beat it. Settings are drawn by TPE from all trials, by the part of each
score that its strategies do not explain, so that a good setting is recognised under a bad strategy, too.

Stopped trials count as worse than completed ones, trials that miss a constraint as worse than these, and trials that
diverged or failed by their values as worst of all. Trials that were cancelled, or lost by the cluster, are left out.
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
from raysweep.contracts import FAILED, Draw
from raysweep.job import bounds
from raysweep.job.checks.samplers import strategies_of
from raysweep.job.parameter import Parameter
from raysweep.meta.effects import Effects, normal_scores, posterior, top_two
from raysweep.strategies.samplers import tpe

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

DRAWS = 100
"""Samples of all effects: the challenger of the best combination is looked for in so many."""
Arm = dict[str, Any]
"""A combination: path -> choice of each strategy that exists beside the others."""


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    exploration: Annotated[float, Field(ge=0.1, le=1)] = 0.1
    """Share of points that are drawn at random, to the end of the sweep: no choice is given up for good."""
    leader: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the other points that try the probably best combination; the rest try one that may beat it."""
    startup_trials: Annotated[int, Field(ge=1, le=bounds.TRIALS)] = 10
    """Ended trials before TPE draws the settings; until then they are random."""

    # Without a choice of strategies there is no arm; the scores order trials by one number.
    cannot = ("strategies", "objectives")
    avoids_failures = True

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        return _bandit_sampler()(self, draw)

    def choose(self, draw: Draw, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return the values chosen for a point: strategies, and settings unless they are to be random.

        Args:
            trials: all of the sweep, running ones included.
        """
        generator = np.random.default_rng(draw.seed)
        arms = arms_of(draw)
        fewest = least_tried(draw, arms, trials)
        # The draw's own generator breaks ties, so a resumed sweep makes the same choice.
        if fewest:
            return fewest[generator.integers(len(fewest))]
        # An empty choice leaves all parameters to Optuna's random sampler.
        if generator.random() < self.exploration:
            return {}
        strategies = [one.path for one in strategies_of(draw.space)]
        ended = [trial for trial in trials if _teaches(trial)]
        effects = Effects(draw.space.parameters, strategies)
        scores = normal_scores([_standing(trial) for trial in ended])
        known = posterior(effects.rows([trial.params for trial in ended]), scores, effects.variances)
        # An arm's row holds its strategies alone: combinations are compared at the same, average settings.
        worths = known.draw(DRAWS, generator) @ effects.rows(arms).T
        # What is left of each score once the effects of its strategies and their pairs are taken off.
        decided = [{path: trial.params[path] for path in strategies if path in trial.params} for trial in ended]
        left = scores - effects.rows(decided) @ known.mean
        return self._settings(draw, ended, left, trials) | arms[top_two(worths, self.leader, generator)]

    def _settings(
        self, draw: Draw, ended: Sequence[FrozenTrial], left: Any, trials: Sequence[FrozenTrial]
    ) -> dict[str, Any]:
        """Draw all settings by TPE, from ended trials with what is `left` of their scores, and from running ones."""
        import optuna
        from optuna.trial import TrialState, create_trial

        from raysweep.sweep.history import distributions_of

        strategies = {one.path for one in strategies_of(draw.space)}
        free = {path: one for path, one in distributions_of(draw.space).items() if path not in strategies}
        study = optuna.create_study(
            direction="maximize", sampler=tpe.Sampler(startup_trials=self.startup_trials).propose(draw)
        )
        # Running trials have no score, but TPE must see them: it keeps away from where lanes are at work.
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for trial, score in [*zip(ended, left, strict=True), *((trial, None) for trial in running)]:
            # Strategies are chosen already; as parameters they would only blur the model of the settings.
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
    """Return every combination of strategies that can exist together."""
    strategies = strategies_of(draw.space)
    settings = {*draw.space.paths} - {one.path for one in strategies}
    arms: list[Arm] = [{}]
    # Whether a condition on a setting holds is not known before the settings are drawn, so it is taken to
    # hold. Conditions on other strategies are checked as the arm grows: a space lists a parameter after
    # those it depends on.
    for one in strategies:
        known = replace(one, conditions=tuple(c for c in one.conditions if c.path not in settings))
        arms = [grown for arm in arms for grown in _grown(arm, known, draw)]
    return arms


def _grown(arm: Arm, strategy: Parameter, draw: Draw) -> list[Arm]:
    """Return an arm with each choice of one more strategy, or as it is where that strategy does not exist."""
    if not draw.space.active(strategy, arm, draw.job):
        return [arm]
    return [{**arm, strategy.path: choice} for choice in strategy.choices]


def least_tried(draw: Draw, arms: Sequence[Arm], trials: Sequence[FrozenTrial]) -> list[Arm]:
    """Return the arms with the least tried choices, or none when the first round is over.

    The first round is over when every choice without a condition has been tried and a trial has ended.
    """
    strategies = strategies_of(draw.space)
    # Running and failed trials count as tried. So parallel lanes do not all try the same choice, and a
    # choice that always fails does not look new for ever. repr tells 1 from True and from 1.0.
    tried = Counter((path, repr(value)) for trial in trials for path, value in trial.params.items())
    always = [(one.path, repr(choice)) for one in strategies if not one.conditions for choice in one.choices]
    if all(tried[choice] for choice in always) and any(_teaches(trial) for trial in trials):
        return []
    # One strategy after the other: of the arms left, those with its least tried choice, and those without it.
    found = list(arms)
    for one in strategies:
        times = [tried[one.path, repr(arm[one.path])] for arm in found if one.path in arm]
        found = [arm for arm in found if one.path not in arm or tried[one.path, repr(arm[one.path])] == min(times)]
    return found


def _standing(trial: FrozenTrial) -> tuple[float, ...]:
    """Return a sort key of ended trials, best first; equal keys for trials that cannot be compared."""
    from optuna.trial import TrialState

    miss = sum(max(amount, 0.0) for amount in trial.constraints.values())
    if trial.user_attrs[FAILED]:
        return (3,)
    if miss > 0:
        return (2, miss)
    # Of stopped trials, as in TPE, the one that came further is better, then the one with the lower loss there.
    if trial.state == TrialState.PRUNED:
        reached, loss = max(trial.intermediate_values.items(), default=(0, math.inf))
        return (1, -reached, loss)
    assert trial.value is not None
    return (0, trial.value)


def _teaches(trial: FrozenTrial) -> bool:
    """Return whether a trial's end says something about its values."""
    from optuna.trial import TrialState

    # A trial that failed by its values looks completed here; in state FAIL are those that the cluster lost.
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _bandit_sampler() -> Any:
    """Return the class of Optuna samplers that draws by a bandit: only an Optuna sampler sees how trials ended."""
    # Inside a function, because Optuna takes long to import and most commands draw no point.
    import optuna

    class BanditSampler(optuna.samplers.BaseSampler):
        def __init__(self, sampler: Sampler, draw: Draw) -> None:
            self._sampler, self._draw = sampler, draw
            self._random = optuna.samplers.RandomSampler(seed=draw.seed)

        # Optuna draws together what `sample_relative` returns, whatever the search space here says, and the
        # rest one by one with `sample_independent`.
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, Any]) -> dict[str, Any]:
            return self._sampler.choose(self._draw, study.get_trials(deepcopy=False))

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self._random.sample_independent(study, trial, name, distribution)

    return BanditSampler
