"""Every strategy picks the heads that are planted for it, and no two of them are the same thing."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import at, causal, head_map_without, head_places, mean_loss, some_tokens, tiny_model

from raysweep.contracts import Array, HeadStatistics, Mask, Slot
from raysweep.job import registry
from raysweep.networks.plasticity.budget import lowest_heads
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.leave_one_out import contributions
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.probe import probe

USEFUL, LARGE, SMALL, UNIFORM, SINGLE_KEY = (1, 1), (2, 0), (1, 0), (2, 2), (0, 1)
PRUNERS: list[tuple[str, dict[str, Any]]] = [
    ("taylor", {}), ("magnitude", {}), ("entropy", {"direction": "high"}), ("entropy", {"direction": "low"}),
    ("random", {}), ("fisher", {}), ("activation", {}), ("contribution", {}), ("magnitude", {"form": "ov"}),
    ("magnitude", {"form": "qk"}), ("entropy", {"direction": "high", "sink_free": True}),
    ("combined", {"weights": {"fisher": 1.0, "magnitude_ov": 0.5, "entropy_high": 0.5}}),
]  # fmt: skip
GROWERS = ["balanced", "entropy_gap", "gradient_sensitivity", "random"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def statistics_of(model: PlasticModel, tokens: torch.Tensor, head_map: HeadMap, **options: Any) -> HeadStatistics:
    model.set_gates(head_map)
    return probe(model, [causal(part) for part in tokens.split(4)], head_map, lambda tensor: tensor, **options)


def made_up(present: Mask, seed: int = 0, **arrays: Array) -> HeadStatistics:
    """Return random statistics, all strategies' inputs included."""
    generator = rng(seed)
    names = [field.name for field in fields(HeadStatistics) if field.name != "present"]
    return HeadStatistics(present=present, **{name: generator.random(present.shape) for name in names} | arrays)


def random_map(seed: int, layers: int = 4, heads: int = 5) -> Mask:
    return rng(seed).random((layers, heads)) < rng(seed).random()


# A model with planted heads.


def scale(model: PlasticModel, slot: Slot, role: str, factor: float) -> None:
    for place in head_places("gpt2", model, *slot)[role]:
        at(model, place).mul_(factor)


@pytest.fixture(scope="module")
def planted() -> HeadStatistics:
    """Statistics of a GPT-2 in which heads stand out: for the loss, by size, and by where they look."""
    model = tiny_model("gpt2", attention="eager")
    for layer, head in np.ndindex(model.shape):
        if (layer, head) != USEFUL:
            scale(model, (layer, head), "output", 1e-3)
    scale(model, LARGE, "value", 1e3)
    scale(model, LARGE, "output", 1e-3)
    for role in ("query", "key", "value", "output"):
        scale(model, SMALL, role, 0.5)
    for role in ("query", "key"):
        scale(model, UNIFORM, role, 0.0)
        scale(model, SINGLE_KEY, role, 30.0)
    whole = HeadMap.full(*model.shape)
    truth = contributions(model, [causal(some_tokens(8))], whole).mean(0)
    return replace(statistics_of(model, some_tokens(8), whole), contribution=truth)


def order_of_removal(planted: HeadStatistics, name: str, options: dict[str, Any]) -> list[Slot]:
    scores = registry.build("prune", name, options)(planted, rng())
    whole = HeadMap.full(*planted.present.shape)
    return [
        slot
        for count in range(1, 10)
        for slot in lowest_heads(scores, whole, count, budget="global", min_heads_per_layer=0, protected=set())[-1:]
    ]


def test_each_pruner_removes_its_planted_heads_first_and_keeps_its_planted_heads_longest(
    planted: HeadStatistics,
) -> None:
    assert order_of_removal(planted, "taylor", {})[-1] == USEFUL
    for estimate in ("fisher", "contribution"):
        assert order_of_removal(planted, estimate, {})[-1] == USEFUL
    assert order_of_removal(planted, "activation", {})[-1] == USEFUL
    assert order_of_removal(planted, "magnitude", {})[-1] == LARGE
    assert order_of_removal(planted, "magnitude", {"form": "qk"})[0] == UNIFORM
    assert order_of_removal(planted, "magnitude", {"form": "qk"})[-1] == SINGLE_KEY
    assert order_of_removal(planted, "magnitude", {"form": "ov"})[-1] in (USEFUL, LARGE)
    for sink_free in (True, False):
        assert order_of_removal(planted, "entropy", {"direction": "high", "sink_free": sink_free})[0] == UNIFORM
    assert order_of_removal(planted, "magnitude", {})[0] == SMALL
    assert order_of_removal(planted, "entropy", {"direction": "high"})[0] == UNIFORM
    assert order_of_removal(planted, "entropy", {"direction": "high"})[-1] == SINGLE_KEY
    assert order_of_removal(planted, "entropy", {"direction": "low"})[0] == SINGLE_KEY
    assert order_of_removal(planted, "entropy", {"direction": "low"})[-1] == UNIFORM


def test_no_two_pruners_are_the_same(planted: HeadStatistics) -> None:
    orders = [order_of_removal(planted, name, options) for name, options in PRUNERS]
    assert {name for name, _ in PRUNERS} == set(registry.available("prune"))
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert all(first != second for first, second in combinations(orders, 2))


@pytest.mark.parametrize(("name", "options"), PRUNERS)
def test_pruners_read_only_what_they_are_given(planted: HeadStatistics, name: str, options: dict[str, Any]) -> None:
    before = {f.name: np.array(getattr(planted, f.name), copy=True) for f in fields(planted)}
    build = registry.build("prune", name, options)
    np.random.seed(1)
    first = build(planted, rng(5))
    np.random.seed(2)
    assert np.array_equal(build(planted, rng(5)), first)
    assert np.array_equal(build(planted, rng(6)), first) == (name != "random")
    assert first.shape == planted.present.shape
    assert all(np.array_equal(before[f.name], np.array(getattr(planted, f.name))) for f in fields(planted) if f.name
               not in ("reference_entropy", "sensitivity"))  # fmt: skip


def test_entropy_pruning_without_a_direction_is_refused() -> None:
    with pytest.raises(TypeError):
        registry.build("prune", "entropy")
    ((option, value, message),) = registry.option_faults("prune", "entropy", {})
    assert (option, value) == ("direction", None) and "high" in message and "low" in message


# Growth: what holds for every strategy.


def test_the_growth_strategies_here_are_all_there_are() -> None:
    assert registry.available("grow") == GROWERS


@pytest.mark.parametrize("name", GROWERS)
@pytest.mark.parametrize("seed", range(8))
def test_growers_return_exactly_as_many_distinct_absent_slots_as_asked(name: str, seed: int) -> None:
    present = random_map(seed)
    statistics = made_up(present, seed)
    before = {f.name: np.array(getattr(statistics, f.name), copy=True) for f in fields(statistics)}
    absent = {(int(layer), int(head)) for layer, head in np.argwhere(~present)}
    for count in {0, 1, len(absent) // 2, len(absent)}:
        count = min(count, len(absent))
        np.random.seed(seed)
        slots = registry.build("grow", name)(statistics, count, rng(3))
        np.random.seed(seed + 1)
        assert registry.build("grow", name)(statistics, count, rng(3)) == slots
        assert len(slots) == len(set(slots)) == count and set(slots) <= absent
        assert all(type(value) is int for slot in slots for value in slot)
    assert all(np.array_equal(before[n], getattr(statistics, n)) for n in before)


def test_no_two_growers_are_the_same() -> None:
    present = np.ones((4, 6), dtype=bool)
    present[0, 1:] = present[1, 2:] = present[2, 3:] = False
    chosen = [registry.build("grow", name)(made_up(present, 1), 5, rng(4)) for name in GROWERS]
    assert all(set(first) != set(second) for first, second in combinations(chosen, 2))


# Growth: balanced.


@pytest.mark.parametrize("seed", range(12))
def test_balanced_growth_raises_the_emptiest_layers_and_no_other(seed: int) -> None:
    present = random_map(seed)
    for count in range(int((~present).sum()) + 1):
        slots = registry.build("grow", "balanced")(made_up(present), count, rng())
        after = present.copy()
        for slot in slots:
            after[slot] = True
        grown_layers = sorted({layer for layer, _ in slots})
        assert all(after[layer].sum() <= after.sum(1).min() + 1 for layer in grown_layers)


def test_balanced_growth_levels_layers_to_a_difference_of_one_even_from_an_empty_layer() -> None:
    present = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=bool)
    slots = registry.build("grow", "balanced")(made_up(present), 4, rng())
    after = present.copy()
    for slot in slots:
        after[slot] = True
    assert sorted(after.sum(1)) == [2, 3, 3]
    assert slots[0] == (1, 0)  # the empty layer comes first, the first of its heads first


# Growth: entropy gap.


def distance(first: list[float], second: list[float]) -> float:
    """Integrate |F - G| numerically: the Wasserstein-1 distance by its definition."""
    if not first or not second:
        return float(bool(first) != bool(second))
    grid = (np.arange(20_000) + 0.5) / 20_000
    below = [np.mean(np.asarray(sample)[:, None] <= grid, axis=0) for sample in (first, second)]
    return float(np.abs(below[0] - below[1]).mean())


@pytest.mark.parametrize("seed", range(6))
def test_entropy_gap_takes_in_each_step_the_slot_that_closes_its_layers_gap_most(seed: int) -> None:
    present = random_map(seed + 20, 3, 4)
    before = rng(seed).random((3, 4))
    before[0, ~present[0]] = np.where(rng(seed).random(int((~present[0]).sum())) < 0.5, np.nan, 0.4)
    entropy = rng(seed + 40).random((3, 4))  # measured now: heads have drifted since the prune
    now = [[float(entropy[layer, h]) for h in np.flatnonzero(present[layer])] for layer in range(3)]
    whole = [[float(value) for value in row if np.isfinite(value)] for row in before]
    for slot in registry.build("grow", "entropy_gap")(
        made_up(present, reference_entropy=before, entropy=entropy), 2, rng()
    ):
        closed = {}
        for layer, head in map(tuple, np.argwhere(~present)):
            known = np.isfinite(before[layer, head])
            then = distance(whole[layer], [*now[layer], float(before[layer, head])]) if known else None
            closed[layer, head] = distance(whole[layer], now[layer]) - then if then is not None else 0.0
        assert closed[slot] >= max(closed.values()) - 2e-4, closed
        present[slot] = True
        if np.isfinite(before[slot]):
            now[slot[0]].append(float(before[slot]))


def test_entropy_gap_fills_the_hole_that_pruning_tore() -> None:
    """Layer 0 lost its high-entropy heads, layer 1 one of three equal ones: nothing is missing there."""
    before = np.array([[0.1, 0.15, 0.8, 0.95], [0.5, 0.5, 0.5, 0.5]])
    present = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=bool)
    grow = registry.build("grow", "entropy_gap")
    assert grow(made_up(present, reference_entropy=before, entropy=before), 1, rng()) == [(0, 3)]
    assert grow(made_up(present, reference_entropy=before, entropy=before), 2, rng()) == [(0, 3), (0, 2)]
    low_first = np.array([[0, 0, 1, 1], [0, 1, 1, 1]], dtype=bool)
    assert grow(made_up(low_first, reference_entropy=before, entropy=before), 1, rng()) == [(0, 0)]


def test_entropy_gap_prefers_any_head_of_an_emptied_layer() -> None:
    before = np.array([[0.1, 0.9], [0.3, 0.4]])
    present = np.array([[1, 0], [0, 0]], dtype=bool)
    assert (
        registry.build("grow", "entropy_gap")(made_up(present, reference_entropy=before, entropy=before), 1, rng())[0][
            0
        ]
        == 1
    )


def test_entropy_gap_looks_at_the_entropies_of_now() -> None:
    """Layer 0's last head took over the high entropy that was lost: the gap has moved to the low end."""
    before = np.array([[0.1, 0.5, 0.9]])
    present = np.array([[0, 1, 0]], dtype=bool)
    grow = registry.build("grow", "entropy_gap")
    for now, chosen in ((0.95, (0, 0)), (0.05, (0, 2))):
        entropy = np.array([[0.3, now, 0.3]])
        assert grow(made_up(present, reference_entropy=before, entropy=entropy), 1, rng()) == [chosen]


# Growth: gradient sensitivity.


def test_gradient_sensitivity_takes_the_most_sensitive_slots_with_ties_by_layer_and_head() -> None:
    sensitivity = np.array([[0.2, 9.0, 0.5], [0.5, 0.1, 0.5 + 1e-13]])
    present = np.array([[0, 1, 0], [0, 0, 0]], dtype=bool)
    grow = registry.build("grow", "gradient_sensitivity")
    assert grow(made_up(present, sensitivity=sensitivity), 5, rng()) == [(0, 2), (1, 0), (1, 2), (0, 0), (1, 1)]


ABSENT = ((0, 0), (1, 0), (1, 2), (2, 1), (2, 2))
PLANTED = (2, 1)


def loss_with(model: PlasticModel, head_map: HeadMap, tokens: torch.Tensor) -> float:
    model.set_gates(head_map)
    with torch.no_grad():
        return float(mean_loss(model(tokens), tokens))


def test_a_planted_useful_slot_ranks_first_by_the_gradient_of_its_gate() -> None:
    """All proposals are faint but one: opening it by a little lowers or raises the loss most, and it is chosen."""
    model, tokens = tiny_model("gpt2", attention="eager"), some_tokens(8)
    head_map = head_map_without(model, *ABSENT)
    for slot in set(ABSENT) - {PLANTED}:
        scale(model, slot, "output", 0.02)
    statistics = statistics_of(model, tokens, head_map, sensitivity="gate")
    assert registry.build("grow", "gradient_sensitivity")(statistics, 1, rng()) == [PLANTED]
    base = loss_with(model, head_map, tokens)
    effects = {}
    for slot in ABSENT:
        model.set_gates(head_map.with_grown([slot], 1), {slot: 0.01})
        with torch.no_grad():
            effects[slot] = abs(float(mean_loss(model(tokens), tokens)) - base)
    assert max(effects, key=lambda slot: effects[slot]) == PLANTED


def test_a_planted_useful_slot_ranks_first_by_the_gradient_of_zero_output_weights() -> None:
    """One proposal carries larger values than the others: the first Adam step of its output weights gains most."""
    model, tokens = tiny_model("gpt2", attention="eager"), some_tokens(8)
    head_map = head_map_without(model, *ABSENT)
    for slot in ABSENT:
        scale(model, slot, "output", 0.0)
        scale(model, slot, "value", 4.0 if slot == PLANTED else 0.2)
    statistics = statistics_of(model, tokens, head_map, sensitivity="output")
    assert registry.build("grow", "gradient_sensitivity")(statistics, 1, rng()) == [PLANTED]
    gains = {}
    for slot in ABSENT:
        grown = head_map.with_grown([slot], 1)
        (place,) = head_places("gpt2", model, *slot)["output"]
        weight = model.network.get_parameter(place[0])
        model.set_gates(grown)
        (gradient,) = torch.autograd.grad(mean_loss(model(tokens), tokens), [weight])
        step = gradient.narrow(place[1], place[2].start, len(place[2])).sign() * 1e-4
        before = loss_with(model, grown, tokens)
        at(model, place).sub_(step)
        gains[slot] = before - loss_with(model, grown, tokens)
        at(model, place).zero_()
    assert max(gains, key=lambda slot: gains[slot]) == PLANTED
    assert gains[PLANTED] > 0


def test_sensitivity_of_present_heads_is_no_reason_to_grow() -> None:
    statistics = made_up(np.array([[1, 0], [1, 0]], dtype=bool), sensitivity=np.array([[9.0, 0.1], [9.0, 0.2]]))
    assert registry.build("grow", "gradient_sensitivity")(statistics, 1, rng()) == [(1, 1)]


def test_random_growth_reaches_every_absent_slot() -> None:
    present = np.array([[1, 0, 0], [0, 1, 0]], dtype=bool)
    seen = [registry.build("grow", "random")(made_up(present), 1, rng(seed))[0] for seed in range(60)]
    counts = [seen.count(slot) for slot in ((0, 1), (0, 2), (1, 0), (1, 2))]
    assert sum(counts) == 60 and min(counts) >= 5


def test_a_nan_in_history_of_another_slot_does_not_matter() -> None:
    before = np.array([[0.1, np.nan, 0.9]])
    present = np.array([[1, 0, 0]], dtype=bool)
    statistics = replace(made_up(present), reference_entropy=before, entropy=before)
    assert registry.build("grow", "entropy_gap")(statistics, 2, rng()) == [(0, 2), (0, 1)]


# Combined scores.


def combined(**options: Any) -> Any:
    return registry.build("prune", "combined", options)


@pytest.mark.parametrize("scale", ["rank", "minmax"])
def test_one_score_alone_ranks_as_itself(planted: HeadStatistics, scale: str) -> None:
    names = {"taylor": ("taylor", {}), "entropy_low": ("entropy", {"direction": "low"}),
             "magnitude_qk": ("magnitude", {"form": "qk"})}  # fmt: skip
    for name, (strategy, options) in names.items():
        order = order_of_removal(planted, "combined", {"weights": {name: 3.0}, "scale": scale})
        assert order == order_of_removal(planted, strategy, options)


def test_scores_are_weighed_after_they_are_made_comparable() -> None:
    present = np.array([[1, 1, 1], [1, 0, 0]], dtype=bool)
    given = made_up(
        present, taylor=np.array([[0.0, 1.0, 4.0], [2.0, 99.0, 99.0]]),
        output_norm=np.array([[100.0, 0.0, 300.0], [400.0, -99.0, 1e9]]),
    )  # fmt: skip
    weights = {"taylor": 2.0, "activation": 0.5}
    ranked = combined(weights=weights)(given, rng())
    np.testing.assert_allclose(ranked[present], np.array([2 * 0 + 0.5 / 3, 2 / 3 + 0, 2 + 1 / 3, 2 * 2 / 3 + 0.5]))
    stretched = combined(weights=weights, scale="minmax")(given, rng())
    np.testing.assert_allclose(stretched[present], np.array([0.5 / 4, 0.5, 2 + 0.375, 1 + 0.5]))


def test_a_pruner_asks_for_what_only_it_needs() -> None:
    assert registry.build("prune", "contribution").requires == ("contribution",)
    assert combined(weights={"contribution": 1.0, "taylor": 1.0}).requires == ("contribution",)
    assert combined(weights={"taylor": 1.0}).requires == ()


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"tailor": 1.0}, "Did you mean 'taylor'"),
        ({"entropy": 1.0}, "entropy_high, entropy_low"),
        ({"taylor": 0.0}, "positive"),
        ({"taylor": float("inf")}, "positive"),
        ({}, "at least one"),
        ({"taylor": "much"}, "must be a number"),
    ],
)
def test_weights_that_cannot_be_are_faults(weights: Any, said: str) -> None:
    ((option, _, message), *_) = registry.option_faults("prune", "combined", {"weights": weights})
    assert option == "weights" and said in message and "Value error" not in message


def test_each_option_of_a_score_reads_its_own_statistic() -> None:
    given = made_up(np.ones((2, 3), dtype=bool))
    fields_of = {
        ("magnitude", "form", "ov"): given.magnitude_ov, ("magnitude", "form", "qk"): given.magnitude_qk,
        ("magnitude", "form", "raw"): given.magnitude,
    }  # fmt: skip
    for (name, option, value), expected in fields_of.items():
        assert np.array_equal(registry.build("prune", name, {option: value})(given, rng()), expected)
    for sink_free, expected in ((True, given.sink_free_entropy), (False, given.entropy)):
        low = registry.build("prune", "entropy", {"direction": "low", "sink_free": sink_free})
        assert np.array_equal(low(given, rng()), expected)
    assert np.array_equal(registry.build("prune", "fisher")(given, rng()), given.fisher)
    assert np.array_equal(registry.build("prune", "activation")(given, rng()), given.output_norm)
