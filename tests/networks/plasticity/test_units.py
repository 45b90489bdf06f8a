"""Units that go together where heads share keys and values, and removal in rounds: exact, or an error."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from raysweep.contracts import Array, Slot
from raysweep.errors import TrialError
from raysweep.networks.plasticity.budget import lowest_heads, round_counts
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.units import unit_size


def removed(scores: Array, count: int, head_map: HeadMap | None = None, **rules: Any) -> list[Slot]:
    defaults: dict[str, Any] = {"budget": "global", "min_heads_per_layer": 1, "protected": set(), "groups": 3}
    return lowest_heads(scores, head_map or HeadMap.full(*scores.shape), count, **(defaults | rules))


def some_scores(layers: int = 3, heads: int = 9, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((layers, heads))


@pytest.mark.parametrize("budget", ["global", "per_layer"])
@pytest.mark.parametrize("unit", ["head", "group", "equal"])
def test_without_sharing_all_units_are_the_same(unit: str, budget: str) -> None:
    scores = some_scores()
    for count in range(20):
        assert removed(scores, count, unit=unit, budget=budget, groups=9) == removed(scores, count, budget=budget)


@pytest.mark.parametrize("count", [0, 3, 6, 9, 15, 18])
def test_whole_groups_go_by_the_mean_of_their_scores(count: int) -> None:
    scores = some_scores()
    heads = removed(scores, count, unit="group")
    means = {
        (layer, group): scores[layer, 3 * group : 3 * group + 3].mean() for layer in range(3) for group in range(3)
    }
    spared = {max(((layer, group) for group in range(3)), key=lambda g: means[g]) for layer in range(3)}
    order = sorted(set(means) - spared, key=lambda group: means[group])[: count // 3]
    assert set(heads) == {(layer, 3 * group + at) for layer, group in order for at in range(3)}
    assert len(heads) == count


@pytest.mark.parametrize("count", [0, 3, 6, 12, 18])
def test_equal_units_take_the_lowest_of_every_group(count: int) -> None:
    scores = some_scores(seed=4)
    heads = removed(scores, count, unit="equal")
    assert len(heads) == count
    for layer in range(3):
        lost = sorted(head for at, head in heads if at == layer)
        for group in range(3):
            row = scores[layer, 3 * group : 3 * group + 3]
            expected = np.argsort(row)[: len(lost) // 3] + 3 * group
            assert {head for head in lost if head // 3 == group} == set(expected.tolist())


def test_a_count_that_units_do_not_add_up_to_is_an_error() -> None:
    for unit in ("group", "equal"):
        with pytest.raises(TrialError, match=rf"asked to remove 4 heads, but cycle.prune.unit = {unit} removes 3 at"):
            removed(some_scores(), 4, unit=unit)


def test_the_only_group_of_a_layer_cannot_go() -> None:
    with pytest.raises(TrialError, match="only 0 may go .*unit = group with 1 key/value heads.*set cycle.prune.unit"):
        removed(some_scores(heads=5), 5, unit="group", groups=1)
    assert len(removed(some_scores(heads=5), 5, unit="equal", groups=1)) == 5


def test_a_group_with_a_protected_head_stays() -> None:
    scores = some_scores()
    scores[1, :3] = -1.0
    assert set(removed(scores, 3, unit="group")) == {(1, 0), (1, 1), (1, 2)}
    assert not set(removed(scores, 3, unit="group", protected={(1, 1)})) & {(1, 0), (1, 1), (1, 2)}
    assert (1, 1) not in removed(scores, 18, unit="equal", protected={(1, 1)}, min_heads_per_layer=3)


def test_smaller_groups_fill_what_whole_ones_would_overshoot() -> None:
    scores = np.arange(9.0)[None]
    head_map = HeadMap.full(1, 9).without([(0, 8)])
    assert removed(scores, 5, head_map, unit="group", min_heads_per_layer=0) == [(0, 0), (0, 1), (0, 2), (0, 6), (0, 7)]
    with pytest.raises(TrialError, match="different sizes"):
        removed(scores, 3, head_map, unit="group", budget="per_layer", min_heads_per_layer=0)


def test_uneven_groups_cannot_stay_equal() -> None:
    head_map = HeadMap.full(3, 9).without([(1, 0)])
    with pytest.raises(TrialError, match="layer 1 has key/value groups of 2 and 3 heads.*unit: head"):
        removed(some_scores(), 3, head_map, unit="equal")
    whole_group = HeadMap.full(3, 9).without([(1, 0), (1, 1), (1, 2)])
    assert len(removed(some_scores(), 6, whole_group, unit="group")) == 6


def test_equal_shares_are_counted_in_units() -> None:
    heads = removed(some_scores(), 12, unit="equal", budget="per_layer")
    lost = sorted(sum(layer == at for layer, _ in heads) for at in range(3))
    assert lost == [3, 3, 6]
    with pytest.raises(TrialError, match="cycle.prune.unit = group removes 3 at once"):
        removed(some_scores(), 10, unit="group", budget="per_layer")


@pytest.mark.parametrize(
    ("count", "rounds", "size", "expected"),
    [
        (10, 1, 1, [10]),
        (10, 3, 1, [3, 4, 3]),
        (12, 3, 3, [3, 6, 3]),
        (3, 5, 1, [1, 1, 1]),
        (0, 4, 1, [0]),
        (7, 2, 3, [3, 4]),
    ],
)
def test_rounds_split_a_count_into_whole_units(count: int, rounds: int, size: int, expected: list[int]) -> None:
    assert round_counts(count, rounds, size) == expected


def test_unit_sizes() -> None:
    assert [unit_size(unit, 9, 3) for unit in ("head", "group", "equal")] == [1, 3, 3]
    assert [unit_size(unit, 8, 2) for unit in ("head", "group", "equal")] == [1, 4, 2]
    assert [unit_size(unit, 8, 8) for unit in ("head", "group", "equal")] == [1, 1, 1]


@pytest.mark.parametrize("total", range(1, 20))
@pytest.mark.parametrize("unit", ["head", "group"])
def test_shares_stay_equal_over_rounds_with_the_same_scores_removing_what_one_round_would(
    total: int, unit: Literal["head", "group"]
) -> None:
    scores = some_scores(4, 8, seed=total)
    whole, size = HeadMap.full(4, 8), unit_size(unit, 8, 4)
    total = min(total * size, 24)
    rules: dict[str, Any] = {"groups": 4, "budget": "per_layer", "unit": unit}
    left = whole
    for count in round_counts(total, 3, size):
        left = left.without(removed(scores, count, left, since=whole, **rules))
    lost = whole.present.sum(1) - left.present.sum(1)
    assert left.active == 32 - total and lost.max() - lost.min() <= size
