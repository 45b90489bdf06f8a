"""Shapley values against all orders written out; verdicts flip with what is planted."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from support.subjects import tiny_pnn, tiny_subject

from raysweep.errors import NotApplicableError
from raysweep.science.pnn.analyses.component_importance import Analysis, conclude, shapley

COMPONENTS = ["attention", "feed_forward", "gate"]


def game(players: list[str], seed: int = 0, tokens: int = 5) -> dict[frozenset[str], np.ndarray]:
    generator = np.random.default_rng(seed)
    sets = [frozenset(held) for size in range(len(players) + 1) for held in combinations(players, size)]
    return {held: generator.normal(size=tokens) for held in sets}


def test_shapley_values_are_mean_marginal_losses_over_all_orders() -> None:
    players = ["a", "b", "c", "d"]
    losses = game(players)
    expected = {player: np.zeros(5) for player in players}
    orders = list(permutations(players))
    for order in orders:
        for at, player in enumerate(order):
            marginal = losses[frozenset(order[: at + 1])] - losses[frozenset(order[:at])]
            expected[player] += marginal / len(orders)
    found = shapley(players, losses)
    for player in players:
        assert found[player] == pytest.approx(expected[player])
    assert sum(found.values()) == pytest.approx(losses[frozenset(players)] - losses[frozenset()])


def planted(worth: dict[str, float], spread: float = 0.05) -> Any:
    """Return the finding of additive losses in which each component has a planted cost, on 10 sequences of 2 tokens."""
    subject = tiny_subject()
    generator = np.random.default_rng(1)
    cost = {name: worth[name] + spread * generator.normal(size=20) for name in worth}
    held = [frozenset(some) for size in range(4) for some in combinations(worth, size)]
    losses = {some: 3.0 + sum((cost[name] for name in some), np.zeros(20)) for some in held}
    return conclude(list(worth), {"every step": losses, "step 1": losses}, subject)


@pytest.mark.parametrize("first", COMPONENTS)
def test_the_planted_component_is_named(first: str) -> None:
    finding = planted(dict.fromkeys(COMPONENTS, 0.3) | {first: 1.0})
    assert finding.verdict.startswith(f"{first} matters most")
    effects = {one.name: one.effect for one in finding.comparisons}
    assert effects[f"shapley, every step: {first}"] == pytest.approx(1.0, abs=0.05)
    assert effects[f"leave one out, step 1: {first}"] == pytest.approx(effects[f"shapley, every step: {first}"])


def test_equal_components_are_not_told_apart() -> None:
    finding = planted(dict.fromkeys(COMPONENTS, 0.5), spread=0.1)
    assert finding.verdict.startswith("No single component stands out")


def test_nothing_matters_where_nothing_is_lost() -> None:
    assert planted(dict.fromkeys(COMPONENTS, 0.0)).verdict.startswith("No component matters")
    harmful = planted({"attention": -0.5, "feed_forward": 0.0, "gate": 0.0})
    assert "holding attention lowers it" in harmful.verdict


def test_a_component_that_never_varies_is_worth_nothing_and_the_rest_adds_up() -> None:
    network = tiny_pnn()
    with torch.no_grad():
        network.pnn.refiner.attention.o_proj.weight.zero_()
    finding = Analysis()(tiny_subject(network))
    effects = {one.name: one.effect for one in finding.comparisons}
    for scope in ("every step", "step 1", "step 2", "step 3"):
        loss = finding.figures["loss"][scope]
        assert effects[f"shapley, {scope}: attention"] == pytest.approx(0, abs=1e-9)
        assert abs(effects[f"leave one out, {scope}: feed_forward"]) > 1e-3
        total = sum(effects[f"shapley, {scope}: {name}"] for name in COMPONENTS)
        assert total == pytest.approx(loss["attention+feed_forward+gate"] - loss["intact"])


def test_components_are_those_that_the_network_has() -> None:
    finding = Analysis()(tiny_subject(tiny_pnn(gate="scalar", num_steps=1)))
    assert not any("gate" in one.name for one in finding.comparisons)
    with pytest.raises(NotApplicableError, match="shared_layer"):
        Analysis()(tiny_subject(tiny_pnn(trunk="shared_layer")))


def test_every_comparison_is_adjusted_and_the_count_of_passes_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny_subject(sequences=6)
    passes = 0
    states = subject.network.pnn.states

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        return states(*given, **options)

    monkeypatch.setattr(subject.network.pnn, "states", counted)
    finding = Analysis()(subject)
    assert passes == Analysis().passes(subject)
    assert all(one.q_value is not None and one.q_value >= one.p_value for one in finding.comparisons)
