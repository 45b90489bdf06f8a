"""The regression behind the bandit: its posterior is the true one, and each strategy is credited with what it does."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raysweep.job.parameter import Parameter
from raysweep.job.space import parse_space
from raysweep.meta.effects import (
    PAIR,
    SCALE,
    SETTING,
    SHAPE,
    STRATEGY,
    Effects,
    Posterior,
    normal_scores,
    posterior,
    top_two,
)

PRUNE, GROW, LEVEL = "cycle.prune.strategy", "cycle.grow.strategy", "cycle.prune.level"
SPACE = parse_space(
    {
        PRUNE: {"choice": ["taylor", "entropy", "magnitude", "random"]},
        GROW: {"choice": ["gradient_sensitivity", "entropy_gap", "balanced", "random"]},
        LEVEL: {"uniform": [0.1, 0.6], "step": 0.05},
    },
    "space.yaml",
)
PARAMETERS: dict[str, Parameter] = {one.path: one for one in SPACE.parameters}


def effects_of(*paths: str) -> Effects:
    return Effects([PARAMETERS[path] for path in paths], [path for path in paths if path != LEVEL])


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


# The posterior


def test_the_posterior_is_what_numerical_integration_over_effects_and_noise_gives() -> None:
    """Two effects and the noise's variance on a grid: prior times likelihood, added up."""
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    scores, variances = np.array([-0.4, 1.1, 0.9, 0.3]), np.array([1.0, 0.5])
    found = posterior(rows, scores, variances)

    first, second, noise = np.meshgrid(
        np.linspace(-5, 5, 121), np.linspace(-5, 5, 121), np.geomspace(0.02, 40, 160), indexing="ij"
    )
    log = stats.invgamma.logpdf(noise, SHAPE, scale=SCALE) + np.log(noise)  # the last: cells grow with the noise
    log += sum(
        stats.norm.logpdf(effect, scale=np.sqrt(noise * variance))
        for effect, variance in zip((first, second), variances, strict=True)
    )
    for row, score in zip(rows, scores, strict=True):
        log += stats.norm.logpdf(score, loc=first * row[0] + second * row[1], scale=np.sqrt(noise))
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    mean = np.array([(weight * first).sum(), (weight * second).sum()])
    spread = np.array([[(weight * one * other).sum() for other in (first, second)] for one in (first, second)])
    noise_variance = found.scale / (found.shape - 1)
    assert found.mean == pytest.approx(mean, abs=2e-3)
    assert noise_variance == pytest.approx((weight * noise).sum(), rel=5e-3)
    assert noise_variance * found.covariance == pytest.approx(spread - np.outer(mean, mean), abs=4e-3)


def test_draws_have_the_mean_and_the_covariance_of_the_posterior() -> None:
    rows = generator().normal(size=(12, 3))
    known = posterior(rows, rows @ [1.0, -0.5, 0.0], np.ones(3))
    draws = known.draw(200_000, generator())
    assert draws.mean(axis=0) == pytest.approx(known.mean, abs=3e-3)
    assert np.cov(draws.T) == pytest.approx(known.scale / (known.shape - 1) * known.covariance, abs=2e-3)


def test_what_is_unknown_keeps_its_variance_and_what_is_seen_often_loses_it() -> None:
    effects = effects_of(PRUNE)
    seen = [{PRUNE: "taylor"}] * 30 + [{PRUNE: "entropy"}] * 3
    known = posterior(effects.rows(seen), np.zeros(33), effects.variances)
    contrast = effects.rows([{PRUNE: choice} for choice in PARAMETERS[PRUNE].choices]) - effects.rows(
        [{PRUNE: "taylor"}]
    )
    spread = [float(np.sqrt(row @ known.covariance @ row)) for row in contrast]
    assert spread[0] == 0 and spread[1] < spread[2] == pytest.approx(spread[3])


# Scores


def test_scores_are_normal_quantiles_of_the_order_with_the_lowest_standing_highest() -> None:
    scores = normal_scores([(0, 3.0), (0, 1.0), (2,), (1, -5.0, 0.0), (2,)])
    assert list(np.argsort(-scores))[:3] == [1, 0, 3] and scores[2] == scores[4] == scores.min()
    many = normal_scores(list(generator().permutation(500)))
    assert many.mean() == pytest.approx(0, abs=1e-12) and many.std() == pytest.approx(1, abs=0.02)
    assert list(normal_scores([7.0])) == [0.0]


def test_scores_know_nothing_of_the_objectives_unit() -> None:
    losses = generator().normal(size=20)
    assert np.array_equal(normal_scores(list(losses)), normal_scores(list(np.exp(3 * losses) + 40)))


# Credit


def planted(pruner: str, grower: str) -> float:
    """Return a loss in which taylor takes 1.5 off and balanced puts 3 on, whatever stands beside them."""
    return 10 - 1.5 * (pruner == "taylor") + 3 * (grower == "balanced")


def means(points: list[dict[str, Any]], losses: list[float]) -> dict[str, float]:
    """Return what each choice alone is found to add."""
    effects = effects_of(PRUNE, GROW)
    known = posterior(effects.rows(points), normal_scores(losses), effects.variances)
    alone = [{path: choice} for path in (PRUNE, GROW) for choice in PARAMETERS[path].choices]
    worth = (effects.rows(alone) - effects.rows([{}])) @ known.mean
    return {
        f"{path} {choice}": float(value)
        for point, value in zip(alone, worth, strict=True)
        for path, choice in point.items()
    }


def test_a_good_pruner_is_credited_though_it_was_only_seen_beside_a_bad_grower() -> None:
    """Eight trials: by the mean of its trials, or with the credit of whole trials, taylor is the worst pruner."""
    pairs = [
        ("taylor", "balanced"), ("taylor", "balanced"), ("entropy", "balanced"), ("magnitude", "balanced"),
        ("entropy", "random"), ("entropy", "gradient_sensitivity"),
        ("magnitude", "entropy_gap"), ("magnitude", "random"),
    ]  # fmt: skip
    points = [{PRUNE: pruner, GROW: grower} for pruner, grower in pairs]
    losses = [planted(*pair) for pair in pairs]
    mean = {name: np.mean([planted(*pair) for pair in pairs if pair[0] == name]) for name, _ in pairs}
    assert max(mean, key=lambda name: mean[name]) == "taylor"
    found = means(points, losses)
    pruners = {name: worth for name, worth in found.items() if name.startswith(PRUNE)}
    growers = {name: worth for name, worth in found.items() if name.startswith(GROW)}
    assert max(pruners, key=lambda name: pruners[name]) == f"{PRUNE} taylor"
    assert min(growers, key=lambda name: growers[name]) == f"{GROW} balanced"


def test_what_only_a_pair_does_is_credited_to_the_pair() -> None:
    pairs = list(product(PARAMETERS[PRUNE].choices, PARAMETERS[GROW].choices)) * 2
    points = [{PRUNE: pruner, GROW: grower} for pruner, grower in pairs]
    losses = [float(generator().normal(0, 0.1)) - 3 * (pair == ("entropy", "balanced")) for pair in pairs]
    effects = effects_of(PRUNE, GROW)
    known = posterior(effects.rows(points), normal_scores(losses), effects.variances)
    worth = effects.rows(points[:16]) @ known.mean
    alone = means(points, losses)
    assert pairs[int(worth.argmax())] == ("entropy", "balanced")
    assert worth.max() > 1.5 * (alone[f"{PRUNE} entropy"] + alone[f"{GROW} balanced"])


def test_what_a_setting_does_is_no_strategys_merit() -> None:
    """Taylor only ran at the worst level; at equal levels both strategies do the same."""
    levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    points = [{PRUNE: "taylor", LEVEL: level} for level in levels[3:]] * 2
    points += [{PRUNE: "entropy", LEVEL: level} for level in levels] * 2
    scores = normal_scores([point[LEVEL] for point in points])

    def advantage(*paths: str) -> float:
        effects = effects_of(*paths)
        rows = effects.rows([{path: point[path] for path in paths} for point in points])
        known = posterior(rows, scores, effects.variances)
        taylor, entropy = effects.rows([{PRUNE: "taylor"}, {PRUNE: "entropy"}])
        return float((taylor - entropy) @ known.mean)

    assert abs(advantage(PRUNE, LEVEL)) < 0.1 < 0.5 < -advantage(PRUNE)


def test_columns_have_the_variance_of_what_they_are_for() -> None:
    variances = list(effects_of(PRUNE, GROW, LEVEL).variances)
    assert (variances.count(PAIR), variances.count(SETTING), variances.count(STRATEGY)) == (16, 2, 1 + 4 + 4)


# Top two


def test_the_challenger_is_another_arm_and_as_frequent_as_asked() -> None:
    draws = np.array([[1.0, 0.9, 0.1]] * 50 + [[0.2, 0.9, 0.1]])
    chosen = [top_two(draws, 0.7, np.random.default_rng(seed)) for seed in range(400)]
    assert set(chosen) == {0, 1} and chosen.count(0) / 400 == pytest.approx(0.7, abs=0.07)


def test_where_one_arm_is_best_in_every_draw_the_challenger_is_the_second_of_the_first() -> None:
    draws = np.array([[0.1, 0.5, 2.0], [0.3, 0.1, 2.0]])
    assert {top_two(draws, 1e-9, np.random.default_rng(seed)) for seed in range(20)} == {1}
    assert top_two(draws[:, :1], 1e-9, generator()) == 0


def test_thompson_sampling_goes_to_the_best_arm_as_evidence_grows() -> None:
    effects = effects_of(PRUNE)
    arms = [{PRUNE: choice} for choice in PARAMETERS[PRUNE].choices]

    def share(repeats: int) -> float:
        points = arms * repeats
        noise = np.random.default_rng(3).normal(0, 0.7, size=len(points))
        losses = [float(value) - (point == arms[2]) for point, value in zip(points, noise, strict=True)]
        known: Posterior = posterior(effects.rows(points), normal_scores(losses), effects.variances)
        worths = known.draw(4000, generator()) @ effects.rows(arms).T
        return float((worths.argmax(axis=1) == 2).mean())

    assert share(2) < share(10) < share(60) and share(60) > 0.98
