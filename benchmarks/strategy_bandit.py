"""Compare searches on planted tasks: do they find the best pair of strategies, and how good is their best trial?

    python -m benchmarks.strategy_bandit        # add --small to try it out; a process a core

A task is a made-up loss of 4 pruning strategies x 4 growth strategies x 3 settings, its best point known. A search sees
60 trials of it, one after the other, its losses noisy where the task is. Judged is the trial that looks best, by its
loss without noise: its regret, as a share of a random point's mean, and whether its pair is the best pair. The unit is
the task: means are of tasks, intervals resample tasks, then seeds, the same for all searches. The defaults of
strategy_bandit were chosen on other tasks of these kinds (numbers 0 to 4).

`random`, `tpe` and `strategy_bandit` are the samplers of a job, asked as a sweep asks them. The other three are the
controllers of the first research codes of this cycle, as described there, on settings drawn at random:

- ratings: a weight a strategy, 1 at first (random: 0.5), times 1 + clip(improvement, 0, 0.5) after a success (at most
  1.15 x the initial perplexity; here that of a median random point) and times 0.8 after a failure, kept in [0.1, 10];
  drawn in proportion; both strategies of a trial have the credit of the whole trial.
- greedy: the strategies of the best mean, no exploration; here each is tried once before, there the first one only.
- dqn: epsilon-greedy over the pairs, 1 at first, x 0.95 a trial down to 0.1, which learns from 100 trials on; a table
  takes the network's place.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

import numpy as np

from benchmarks.reference import Figure, write
from raysweep.job.jobfile import Job, check_job
from raysweep.job.plan import derived_seed
from raysweep.records.environment import usable_cores
from raysweep.records.schema import TrialRecord
from raysweep.sweep.study import Study

KINDS = ("additive", "pairs", "noisy", "settings")
FIRST, TASKS, SEEDS, TRIALS = 100, 6, 10, 60
"""Number of the first task of each kind, and how many there are; seeds of each, and trials of each seed."""
MANY = 200
"""Trials of `dqn`: it learns in the second half."""
CHECKPOINTS = (10, 20, 40, 60, MANY)
OURS, TPE = "strategy_bandit", "tpe"
SAMPLERS = (OURS, TPE, "random")
BEATEN_BY = 20
"""Trials after which the bandit has to be ahead of uniform choice and of the three controllers."""
PRUNE, GROW = "cycle.prune.strategy", "cycle.grow.strategy"
STRATEGIES = {
    PRUNE: ("taylor", "fisher", "magnitude", "random"),
    GROW: ("gradient_sensitivity", "entropy_gap", "balanced", "random"),
}
SETTINGS = ("cycle.prune.level", "cycle.learn.lr", "cycle.learn.new_head_lr_multiplier")
SPACE: dict[str, Any] = {
    **{path: {"choice": list(choices)} for path, choices in STRATEGIES.items()},
    "cycle.prune.level": {"uniform": [0.1, 0.6], "step": 0.05},
    "cycle.learn.lr": {"log_uniform": [1e-5, 1e-3]},
    "cycle.learn.new_head_lr_multiplier": {"log_uniform": [1.0, 10.0]},
}
JOB: dict[str, Any] = {
    "name": "planted",
    "model": {"name": "gpt2-nano"},
    "cycle": {
        "baseline": {"steps": 10, "lr": 1e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "random", "ratio": 0.5},
        "learn": {"steps": 10, "lr": 1e-3},
    },
}
BOOTSTRAPS = 2000

Values = Mapping[str, Any]


class Task:
    """A planted loss: effects of strategies and of pairs, and a parabola of each setting, its optimum a pair's own.

    additive: the pairs add nothing. pairs: as much as the strategies. noisy: additive, under noise half as wide as the
    strategies' effects. settings: the strategies matter a fifth as much.
    """

    def __init__(self, kind: str, number: int) -> None:
        generator = np.random.default_rng(derived_seed("task", kind, number) % 2**32)
        shape = tuple(map(len, STRATEGIES.values()))
        width = 0.2 if kind == "settings" else 1.0
        self.kind, self.name = kind, f"{kind} {number}"
        effects = width * (generator.standard_normal((shape[0], 1)) + generator.standard_normal((1, shape[1])))
        self._effects = effects + (generator.standard_normal(shape) if kind == "pairs" else 0.0)
        shared, own = generator.uniform(0.2, 0.8, size=3), generator.normal(0, 0.1, size=(*shape, 3))
        self._optima = np.clip(shared + own, 0, 1)
        self._curvatures = generator.uniform(3, 9, size=3)
        self.noise = 0.5 if kind == "noisy" else 0.0
        self.best_pair = tuple(int(at) for at in np.unravel_index(self._effects.argmin(), shape))
        points = [self._loss((p, g), generator.random(3)) for p in range(4) for g in range(4) for _ in range(200)]
        self.best, self.typical = float(self._effects.min()), float(np.mean(points))
        self.initial = float(np.median(points))

    def loss(self, values: Values) -> float:
        """Return the loss of a point, without noise."""
        return self._loss(pair_of(values), np.array([share_of(path, values[path]) for path in SETTINGS]))

    def _loss(self, pair: tuple[int, ...], shares: Any) -> float:
        return float(self._effects[pair] + self._curvatures @ (shares - self._optima[pair]) ** 2)


def pair_of(values: Values) -> tuple[int, ...]:
    return tuple(choices.index(values[path]) for path, choices in STRATEGIES.items())


def share_of(path: str, value: float) -> float:
    """Return how far through its range a setting lies, in [0, 1]."""
    [(form, (low, high))] = [(key, ends) for key, ends in SPACE[path].items() if key != "step"]
    if form == "log_uniform":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


# Searches.


class Search(Protocol):
    def ask(self) -> Values: ...

    def tell(self, values: Values, loss: float) -> None: ...


@cache
def job_of(sampler: str) -> Job:
    search = {"space": SPACE, "trials": TRIALS, "sampler": {"name": sampler}}
    return check_job({**JOB, "search": search}, "planted.yaml")


class Sampled:
    """A sampler of raysweep that is used as in a sweep of one lane."""

    def __init__(self, name: str, seed: int) -> None:
        job = job_of(name)
        self._study = Study(replace(job, spec=job.spec.model_copy(update={"seed": seed})), None)
        self._trial = 0

    def ask(self) -> Values:
        self._trial += 1
        values = self._study.ask(self._trial)
        assert values is not None
        return values

    def tell(self, values: Values, loss: float) -> None:
        record = TrialRecord(
            trial=self._trial, status="COMPLETE", values=dict(values), seed=0, proposer="", attempts=1, objective=loss,
            objectives={"loss": loss}, phases=[], seconds=0.0,
        )  # fmt: skip
        self._study.tell(record, [])


class Controller:
    """The base of the three controllers: settings drawn at random."""

    def __init__(self, task: Task, seed: int) -> None:
        self._task, self._random = task, random.Random(seed)

    def choose(self) -> dict[str, str]:
        raise NotImplementedError

    def ask(self) -> Values:
        job = job_of("random")
        assert job.space is not None
        return job.space.draw(job.spec.resolved(), self._random) | self.choose()


class Ratings(Controller):
    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        self._weights = {
            (path, choice): 0.5 if choice == "random" else 1.0
            for path, choices in STRATEGIES.items() for choice in choices
        }  # fmt: skip

    def choose(self) -> dict[str, str]:
        return {
            path: self._random.choices(choices, [self._weights[path, choice] for choice in choices])[0]
            for path, choices in STRATEGIES.items()
        }

    def tell(self, values: Values, loss: float) -> None:
        ratio = math.exp(loss - self._task.initial)
        factor = 1 + min(max(1 - ratio, 0.0), 0.5) if ratio <= 1.15 else 0.8
        for path in STRATEGIES:
            weight = self._weights[path, values[path]] * factor
            self._weights[path, values[path]] = min(max(weight, 0.1), 10.0)


class Greedy(Controller):
    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        self._losses: dict[tuple[str, str], list[float]] = {
            (path, choice): [] for path, choices in STRATEGIES.items() for choice in choices
        }

    def choose(self) -> dict[str, str]:
        def mean(path: str, choice: str) -> float:
            losses = self._losses[path, choice]
            return float(np.mean(losses)) if losses else -math.inf

        return {
            path: min(self._random.sample(choices, len(choices)), key=lambda choice: mean(path, choice))
            for path, choices in STRATEGIES.items()
        }

    def tell(self, values: Values, loss: float) -> None:
        for path in STRATEGIES:
            self._losses[path, values[path]].append(loss)


class Dqn(Controller):
    """One state and no next one: what is left of Q-learning is a running mean of each pair's reward."""

    RATE, LEARNS_FROM, BATCH = 0.01, 100, 32

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        self._values = {pair: self._random.gauss(0, 0.01) for pair in np.ndindex(4, 4)}
        self._memory: list[tuple[tuple[int, ...], float]] = []
        self._exploration = 1.0

    def choose(self) -> dict[str, str]:
        pairs = list(self._values)
        explores = self._random.random() < self._exploration
        pair = self._random.choice(pairs) if explores else max(pairs, key=lambda one: self._values[one])
        self._exploration = max(0.1, 0.95 * self._exploration)
        return {path: choices[at] for at, (path, choices) in zip(pair, STRATEGIES.items(), strict=True)}

    def tell(self, values: Values, loss: float) -> None:
        self._memory.append((pair_of(values), self._task.initial - loss))
        if len(self._memory) >= self.LEARNS_FROM:
            for pair, reward in self._random.sample(self._memory, self.BATCH):
                self._values[pair] += self.RATE * (reward - self._values[pair])


CONTROLLERS = {"ratings": Ratings, "greedy": Greedy, "dqn": Dqn}
SEARCHES = (*SAMPLERS, *CONTROLLERS)


# What they find.


def found(task: Task, name: str, seed: int) -> list[tuple[float, float]]:
    """Return regret, and 1 where the pair is the best one, of the trial that looks best after each of CHECKPOINTS."""
    own = derived_seed("run", task.name, seed) % 2**31
    search: Any = CONTROLLERS[name](task, own) if name in CONTROLLERS else Sampled(name, own)
    noise = np.random.default_rng(own)
    best, seen = (math.inf, math.inf, 0.0), []
    for trial in range(1, (MANY if name == "dqn" else TRIALS) + 1):
        values = search.ask()
        loss = task.loss(values)
        looks = loss + task.noise * float(noise.standard_normal())
        search.tell(values, looks)
        regret = (loss - task.best) / (task.typical - task.best)
        best = min(best, (looks, regret, float(pair_of(values) == task.best_pair)))
        if trial in CHECKPOINTS:
            seen.append(best[1:])
    return seen


def results_of(place: tuple[str, int, int]) -> dict[str, Any]:
    """Return, of one task, what each search finds: (seeds, checkpoints, regret and hit)."""
    kind, number, seeds = place
    task = Task(kind, number)
    return {name: np.array([found(task, name, seed) for seed in range(seeds)]) for name in SEARCHES}


def interval(differences: Any) -> tuple[float, float]:
    """Return the 95% interval of a mean over (tasks, seeds), tasks and then seeds drawn again and again."""
    generator = np.random.default_rng(0)
    tasks, seeds = differences.shape
    chosen = generator.integers(tasks, size=(BOOTSTRAPS, tasks, 1))
    means = differences[chosen, generator.integers(seeds, size=(BOOTSTRAPS, tasks, seeds))].mean(axis=(1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def mean_figure(name: str, samples: Any, *, asked: str, unit: str, baseline: str) -> Figure:
    """Return the mean over (tasks, seeds), with its interval and the least and largest task."""
    tasks = samples.mean(axis=1)
    low, high = interval(samples)
    runs = {"min": tasks.min(), "median": np.median(tasks), "max": tasks.max(), "low": low, "high": high}
    runs = {key: float(f"{value:.4g}") for key, value in runs.items()} | {"count": float(samples.size)}
    return Figure(
        name=name, measured=float(f"{tasks.mean():.4g}"), asked=asked, unit=unit, baseline=baseline, runs=runs
    )


def figures_of(results: Mapping[str, Any], kinds: Sequence[str]) -> list[Figure]:
    """Return all figures of (tasks, seeds, checkpoints, regret and hit) by search; `kinds` has that of each task."""
    figures = []
    random_point = "a random point of the task, 1"
    for at, trials in enumerate(CHECKPOINTS):
        for name, seen in results.items():
            if at < seen.shape[2]:
                figures += [
                    mean_figure(f"{name}: regret after {trials} trials", seen[:, :, at, 0],
                                asked="(measured)", unit="x", baseline=random_point),
                    mean_figure(f"{name}: the best pair found after {trials} trials", seen[:, :, at, 1],
                                asked="(measured)", unit="of runs", baseline="1 of 16 pairs"),
                ]  # fmt: skip
    for at, trials in enumerate(CHECKPOINTS[:-1]):
        for other in SEARCHES[1:]:
            asked = "< 0" if trials >= BEATEN_BY and other != TPE else "(measured)"
            less = results[OURS][:, :, at, 0] - results[other][:, :, at, 0]
            figures.append(
                mean_figure(f"{OURS} - {other}: regret after {trials} trials", less, asked=asked, unit="x",
                            baseline=other)
            )  # fmt: skip
    less = results[OURS][:, :, 3, 0] - results["dqn"][:, :, 4, 0]
    figures.append(
        mean_figure(f"{OURS} after {TRIALS} trials - dqn after {MANY}: regret", less, asked="< 0", unit="x",
                    baseline="dqn, which has learnt from 100 trials on")
    )  # fmt: skip
    for kind in KINDS:
        rows = [row for row, own in enumerate(kinds) if own == kind]
        for at, trials in enumerate(CHECKPOINTS[:-1]):
            less = (results[OURS] - results[TPE])[rows, :, at]
            for what, column in (("regret", 0), ("the best pair found", 1)):
                figures.append(
                    mean_figure(f"{kind} tasks, {OURS} - {TPE}: {what} after {trials} trials", less[:, :, column],
                                asked="(measured)", unit="x" if column == 0 else "of runs", baseline=TPE)
                )  # fmt: skip
    return figures


def main(small: bool) -> None:
    tasks, seeds = (2, 2) if small else (TASKS, SEEDS)
    places = [(kind, FIRST + number, seeds) for number in range(tasks) for kind in KINDS]
    with ProcessPoolExecutor(usable_cores()) as pool:
        done = list(pool.map(results_of, places))
    results = {name: np.stack([one[name] for one in done]) for name in SEARCHES}
    figures = figures_of(results, [kind for kind, _, _ in places])
    if small:
        return
    write("strategy_bandit", figures)
    missed = [one.name for one in figures if one.asked == "< 0" and one.runs["high"] >= 0]
    assert not missed, missed


if __name__ == "__main__":
    main("--small" in sys.argv)
