"""Budgets are exact: the asked number of heads goes, the right ones, or an error says why not."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from raysweep.contracts import Array, Slot
from raysweep.errors import TrialError
from raysweep.networks.plasticity.budget import lowest_heads, share
from raysweep.networks.plasticity.head_map import HeadMap


def removed(scores: Array, count: int, head_map: HeadMap | None = None, **rules: Any) -> list[Slot]:
    defaults: dict[str, Any] = {"budget": "global", "min_heads_per_layer": 1, "protected": set()}
    return lowest_heads(scores, head_map or HeadMap.full(*scores.shape), count, **(defaults | rules))


def some_scores(layers: int = 4, heads: int = 5, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((layers, heads))


@pytest.mark.parametrize("percent", range(0, 101, 5))
@pytest.mark.parametrize("total", [1, 5, 7, 32, 144, 270])
def test_a_share_is_rounded_half_up(percent: int, total: int) -> None:
    exact = Fraction(percent, 100) * total
    assert share(percent / 100, total) == (2 * exact + 1) // 2


@pytest.mark.parametrize(
    ("fraction", "total", "count"),
    [(0.5, 5, 3), (0.1, 5, 1), (0.15, 10, 2), (0.35, 10, 4), (0.29, 50, 15), (0.57, 50, 29), (0.0, 9, 0), (1.0, 9, 9)],
)
def test_shares_that_floats_would_round_wrong(fraction: float, total: int, count: int) -> None:
    assert share(fraction, total) == count


@pytest.mark.parametrize("count", range(17))
def test_the_global_budget_removes_the_lowest_heads_that_may_go(count: int) -> None:
    scores = some_scores()
    heads = removed(scores, count)
    assert len(heads) == len(set(heads)) == count
    kept_best = {(layer, int(np.argmax(scores[layer]))) for layer in range(4)}
    free = sorted(set(np.ndindex(4, 5)) - kept_best, key=lambda slot: scores[slot])
    assert heads == free[:count]


def test_a_layer_keeps_its_best_heads_however_low_they_score() -> None:
    scores = some_scores()
    scores[2] -= 10
    heads = removed(scores, 6, min_heads_per_layer=3)
    assert [slot for slot in heads if slot[0] == 2] == [(2, int(head)) for head in np.argsort(scores[2])[:2]]
    assert len(heads) == 6


@pytest.mark.parametrize("count", range(17))
def test_the_per_layer_budget_gives_equal_shares_and_the_rest_to_the_lowest_next_heads(count: int) -> None:
    scores = some_scores(seed=3)
    heads = removed(scores, count, budget="per_layer")
    each, rest = divmod(count, 4)
    lost = [[slot for slot in heads if slot[0] == layer] for layer in range(4)]
    order = np.argsort(scores, axis=1)
    for layer in range(4):
        assert {head for _, head in lost[layer]} == set(order[layer, : len(lost[layer])])
    lost_more = {layer for layer in range(4) if len(lost[layer]) == each + 1}
    assert len(lost_more) == rest and all(len(row) in (each, each + 1) for row in lost)
    if each < 4:
        following = sorted(range(4), key=lambda layer: scores[layer, order[layer, each]])
        assert lost_more == set(following[:rest])


def test_the_two_budgets_differ() -> None:
    scores = some_scores()
    scores[0] -= 1
    assert {layer for layer, _ in removed(scores, 4)} == {0}
    assert {layer for layer, _ in removed(scores, 4, budget="per_layer")} == {0, 1, 2, 3}


def test_only_present_and_unprotected_heads_go() -> None:
    scores = some_scores()
    absent = [(0, 0), (1, 1), (2, 2)]
    head_map = HeadMap.full(4, 5).without(absent)
    protected = {(0, 1), (1, 2), (3, 3)}
    scores[0, 0] = scores[1, 1] = scores[2, 2] = scores[0, 1] = scores[1, 2] = -1.0
    heads = removed(scores, 8, head_map, protected=protected)
    assert not set(heads) & (protected | set(absent))
    free = [slot for slot in np.ndindex(4, 5) if slot not in protected and slot not in absent]
    may_go = [heads for heads in combinations(sorted(free, key=lambda slot: scores[slot])[:10], 8)
              if all(head_map.without(heads).present.sum(1) >= 1)]  # fmt: skip
    assert sum(scores[slot] for slot in heads) == pytest.approx(min(sum(scores[s] for s in h) for h in may_go))


def test_protected_heads_count_towards_the_least_number_in_a_layer() -> None:
    scores = np.array([[0.1, 0.2, 0.3]])
    assert removed(scores, 2, protected={(0, 0)}) == [(0, 1), (0, 2)]


def test_ties_go_by_layer_and_head() -> None:
    scores = np.full((3, 3), 0.5)
    assert removed(scores, 4) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert removed(scores, 4, budget="per_layer") == [(0, 0), (0, 1), (1, 0), (2, 0)]


def test_differences_of_summation_order_are_ties() -> None:
    scores = np.array([[1e-3 * (1 + 3e-13), 1e-3, 5.0]])
    assert removed(scores, 1) == [(0, 0)]
    assert removed(np.array([[1e-3 * (1 + 1e-6), 1e-3, 5.0]]), 1) == [(0, 1)]


@pytest.mark.parametrize("budget", ["global", "per_layer"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_an_error_unless_its_head_is_absent(bad: float, budget: str) -> None:
    scores = some_scores()
    scores[1, 3] = bad
    with pytest.raises(TrialError, match="not finite"):
        removed(scores, 3, budget=budget)
    heads = removed(scores, 4, HeadMap.full(4, 5).without([(1, 3)]), budget=budget)
    assert len(heads) == 4 and (1, 3) not in heads


def test_an_infeasible_count_is_an_error_that_says_why() -> None:
    with pytest.raises(TrialError, match=r"asked to remove 17 heads, but only 16 may go .*min_heads_per_layer = 1"):
        removed(some_scores(), 17)
    with pytest.raises(TrialError, match="3 freshly grown heads protected"):
        removed(some_scores(), 16, protected={(0, 0), (0, 1), (1, 0)})
    thin = HeadMap.full(4, 5).without([(1, 0), (1, 1), (1, 2), (1, 3)])
    with pytest.raises(TrialError, match="equal share is 1 heads a layer, but layer 1 can only lose 0"):
        removed(some_scores(), 4, thin, budget="per_layer")
    assert len(removed(some_scores(), 4, thin)) == 4
    one_rich = HeadMap.full(3, 3).without([(1, 0), (1, 1), (2, 0), (2, 1)])
    with pytest.raises(TrialError, match="2 layers must lose 1 heads, but only 1 can"):
        removed(some_scores(3, 3), 2, one_rich, budget="per_layer")


def test_a_head_map_keeps_original_positions_and_the_cycle_of_growth() -> None:
    head_map = HeadMap.full(2, 3).without([(0, 1), (1, 2)]).with_grown([(1, 2)], cycle=3)
    assert head_map.to_lists() == [[0, -1, 0], [0, 0, 3]]
    assert head_map.active == 5
    assert np.array_equal(HeadMap.from_lists(head_map.to_lists()).grown, head_map.grown)
    with pytest.raises(AssertionError, match="absent already"):
        head_map.without([(0, 1)])
    with pytest.raises(AssertionError, match="present already"):
        head_map.with_grown([(1, 2)], cycle=4)
