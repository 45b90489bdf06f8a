"""A search space draws only what its ranges, steps and conditions allow, and every fault of it is named."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from raysweep.errors import SpecError
from raysweep.job.parameter import Parameter
from raysweep.job.paths import get_path, set_path
from raysweep.job.space import Space, Values, parse_space

HEADS: dict[str, Any] = {
    "prune.direction": {"choice": ["high", "low"], "when": {"prune.strategy": "entropy"}},
    "prune.strategy": {"choice": ["taylor", "entropy", "random"]},
    "grow.ratio": {"uniform": [0.0, 1.0], "step": 0.25},
    "learn.multiplier": {"log_uniform": [1, 10], "when": {"grow.ratio": {"above": 0, "below": 1}}},
    "learn.decay": {
        "integer": [1, 9],
        "when": {"learn.multiplier": {"above": 2}, "prune.strategy": ["entropy", "random"]},
    },
}


def only(body: Mapping[str, Any], **others: Any) -> Parameter:
    """Return the parameter that one body describes."""
    space = parse_space({"p": body, **others}, "space.yaml")
    return next(parameter for parameter in space.parameters if parameter.path == "p")


def draws(space: Space, count: int = 300, seed: int = 0, job: Mapping[str, Any] | None = None) -> list[Values]:
    generator = random.Random(seed)
    return [space.draw(job or {}, generator) for _ in range(count)]


def drawn(body: Mapping[str, Any], count: int = 300) -> list[Any]:
    return [values["p"] for values in draws(parse_space({"p": body}, "space.yaml"), count)]


def message_of(space: Mapping[str, Any], key: str = "p") -> str:
    """Return what the one fault of a space says; it must name the file and the parameter."""
    with pytest.raises(SpecError) as refused:
        parse_space(space, "space.yaml")
    [fault] = refused.value.faults
    assert (fault.file, fault.key) == ("space.yaml", key)
    return fault.message


# Forms


def test_a_choice_draws_each_of_its_values_and_keeps_their_types() -> None:
    choices = ["a", 1, 2.5, True, None]
    assert {repr(value) for value in drawn({"choice": choices})} == {repr(choice) for choice in choices}


def test_a_uniform_range_is_drawn_over_its_whole_width() -> None:
    values = drawn({"uniform": [2, 6]})
    assert 2 <= min(values) < 2.2 and 5.8 < max(values) <= 6
    assert 3.7 < sum(values) / len(values) < 4.3 and len(set(values)) == len(values)


def test_a_log_uniform_range_is_drawn_evenly_over_its_orders_of_magnitude() -> None:
    values = drawn({"log_uniform": [1e-6, 1e-2]})
    below = [sum(value < bound for value in values) / len(values) for bound in (1e-5, 1e-4, 1e-3)]
    assert all(abs(share - wanted) < 0.1 for share, wanted in zip(below, (0.25, 0.5, 0.75), strict=True))
    assert 1e-6 <= min(values) and max(values) <= 1e-2


@pytest.mark.parametrize(
    ("body", "values"),
    [
        ({"integer": [3, 6]}, [3, 4, 5, 6]),
        ({"integer": [8, 32], "step": 8}, [8, 16, 24, 32]),
        ({"integer": [-2, 2], "step": 2}, [-2, 0, 2]),
    ],
)
def test_an_integer_range_draws_every_whole_number_on_its_steps(body: dict[str, Any], values: list[int]) -> None:
    found = drawn(body)
    assert sorted(set(found)) == values and {type(value) for value in found} == {int}


@pytest.mark.parametrize(
    ("body", "values"),
    [
        ({"uniform": [0.1, 0.6], "step": 0.1}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        ({"uniform": [0, 1], "step": 0.25}, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ({"uniform": [1e-6, 4e-6], "step": 1e-6}, [1e-6, 2e-6, 3e-6, 4e-6]),
    ],
)
def test_a_stepped_range_draws_exactly_the_numbers_that_a_person_would_write(
    body: dict[str, Any], values: list[float]
) -> None:
    assert sorted(set(drawn(body))) == values  # 0.30000000000000004 would be another phase than 0.3


@pytest.mark.parametrize(
    ("body", "quantised"),
    [
        ({"choice": [1, 2]}, True),
        ({"integer": [1, 5]}, True),
        ({"uniform": [0, 1], "step": 0.5}, True),
        ({"uniform": [0, 1]}, False),
        ({"log_uniform": [1, 2]}, False),
    ],
)
def test_a_parameter_knows_whether_two_draws_can_be_equal(body: dict[str, Any], quantised: bool) -> None:
    assert only(body).quantised is quantised


@pytest.mark.parametrize(
    ("body", "number", "nearest"),
    [
        ({"integer": [8, 32], "step": 8}, 19, 16),
        ({"integer": [8, 32], "step": 8}, 100, 32),
        ({"integer": [8, 32], "step": 8}, -5, 8),
        ({"uniform": [0.1, 0.6], "step": 0.1}, 0.30000000000000004, 0.3),
        ({"uniform": [0, 1]}, 0.123456789, 0.123456789),
        ({"uniform": [0, 1]}, 1.5, 1),
    ],
)
def test_the_nearest_value_of_a_range_is_one_that_can_be_drawn(
    body: dict[str, Any], number: float, nearest: float
) -> None:
    assert only(body).nearest(number) == nearest


# Faults


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([1, 2], "must be a plain value, or one of {choice|uniform|log_uniform|integer: [...]}"),
        (None, "must be a plain value, or one of"),
        ({}, "needs exactly one of choice, uniform, log_uniform, integer"),
        ({"choice": [1], "uniform": [0, 1]}, "needs exactly one of"),
        ({"step": 1}, "needs exactly one of"),
        ({"choise": [1, 2]}, "unknown key: no 'choise'. Did you mean 'choice'?"),
        ({"uniform": [0, 1], "steps": 0.5}, "unknown key: no 'steps'. Did you mean 'step'?"),
        ({"choice": []}, "choice needs a non-empty list"),
        ({"choice": "taylor"}, "choice needs a non-empty list"),
        ({"choice": [[1], 2]}, "plain values"),
        ({"choice": [{"a": 1}]}, "plain values"),
        ({"choice": [b"bytes"]}, "plain values"),
        ({"choice": [1, 2, 1]}, "a choice is given twice"),
        ({"choice": [1, 2], "step": 1}, "a choice takes no step"),
        ({"uniform": [0, 1, 2]}, "uniform needs [low, high]"),
        ({"uniform": 3}, "uniform needs [low, high]"),
        ({"integer": {"low": 1}}, "integer needs [low, high]"),
        ({"uniform": [1, 1]}, "low 1 must be below high 1"),
        ({"uniform": [0.6, 0.1]}, "low 0.6 must be below high 0.1"),
        ({"uniform": [0, "much"]}, "'much' is not a finite number"),
        ({"uniform": [False, True]}, "False is not a finite number"),
        ({"uniform": [0, None]}, "None is not a finite number"),
        ({"uniform": [0, float("inf")]}, "inf is not a finite number"),
        ({"integer": [0, float("inf")]}, "inf is not a finite number"),
        ({"uniform": [float("nan"), 1]}, "nan is not a finite number"),
        ({"uniform": [0, 10**400]}, "is not a finite number"),
        ({"log_uniform": [0, 1]}, "log_uniform needs low > 0"),
        ({"log_uniform": [1, 10], "step": 1}, "log_uniform takes no step; give a number of values, or list"),
        ({"choice": [1, 2], "values": 2}, "a choice takes no values"),
        ({"choice": [1, 2], "continuous": True}, "a choice takes no continuous"),
        ({"integer": [1, 5], "values": 2}, "integer takes no values; it takes a step"),
        ({"integer": [1, 5], "continuous": True}, "integer takes no continuous"),
        ({"uniform": [0, 1], "values": 1}, "values needs a whole number from 2 to 1,000,000"),
        ({"uniform": [0, 1], "values": 1_000_001}, "values needs a whole number from 2 to 1,000,000"),
        ({"uniform": [0, 1], "step": 1e-300}, "makes more than 1,000,000 values"),
        ({"uniform": ["0", 1]}, "'0' is not a finite number"),
        ({"uniform": [0, 1], "step": "0.5"}, "'0.5' is not a finite number"),
        ({"uniform": [-1e308, 1e308]}, "is not a finite number of at most 1e+30"),
        ({"integer": [0, 10**400]}, "is not a finite number of at most 1e+30"),
        ({"uniform": [0, 1], "values": 2.5}, "values needs a whole number"),
        ({"uniform": [0, 1], "values": True}, "values needs a whole number"),
        ({"uniform": [0, 1], "values": 3, "step": 0.5}, "step and values exclude each other"),
        ({"log_uniform": [1, 2], "values": 3, "continuous": True}, "values and continuous exclude each other"),
        ({"uniform": [0, 1], "continuous": "yes"}, "continuous is true or false"),
        ({"uniform": [0, 1], "step": 0}, "step 0 must be above 0"),
        ({"uniform": [0, 1], "step": -0.5}, "step -0.5 must be above 0"),
        ({"uniform": [0, 1], "step": 2}, "at most high - low"),
        ({"uniform": [0, 1], "step": 0.3}, "step 0.3 does not divide the range 0 to 1"),
        ({"integer": [8, 30], "step": 8}, "step 8 does not divide the range 8 to 30"),
        ({"integer": [1.5, 3.5]}, "integer needs whole numbers"),
        ({"integer": [1, 3], "step": 0.5}, "integer needs whole numbers"),
        ({"choice": [1], "when": "entropy"}, "when needs {path: value}"),
        ({"choice": [1], "when": None}, "when needs {path: value}"),
        ({"choice": [1], "when": {"p": 1}}, "its condition names itself"),
        ({"choice": [1], "when": {"q": {"over": 1}}}, "a condition is a value, a list of values, {above: x}"),
        ({"choice": [1], "when": {"q": {}}}, "a condition is a value"),
        ({"choice": [1], "when": {"q": []}}, "a condition is a value"),
        ({"choice": [1], "when": {"q": [[1]]}}, "a condition is a value"),
        ({"choice": [1], "when": {"q": {"above": "much"}}}, "'much' is not a finite number"),
    ],
)
def test_a_malformed_parameter_is_refused(body: Any, said: str) -> None:
    assert said in message_of({"p": body})


def test_all_faults_of_a_space_are_reported_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        parse_space({"a": [3], "b": {"choice": [1]}, "c": {"uniform": [1, 0]}, "d": {}}, "space.yaml")
    assert [(fault.key, fault.value) for fault in refused.value.faults] == [
        ("a", [3]), ("c", {"uniform": [1, 0]}), ("d", {}),
    ]  # fmt: skip


def test_a_space_without_parameters_is_refused() -> None:
    assert "holds no parameter" in message_of({}, key="")


# Conditions


def test_a_parameter_exists_exactly_when_its_conditions_hold() -> None:
    drawn: list[dict[str, Any]] = draws(parse_space(HEADS, "space.yaml"), 1000)
    for values in drawn:
        assert ("prune.direction" in values) == (values["prune.strategy"] == "entropy")
        assert ("learn.multiplier" in values) == (0 < values["grow.ratio"] < 1)
        assert ("learn.decay" in values) == (
            "learn.multiplier" in values and values["learn.multiplier"] > 2
            and values["prune.strategy"] in ("entropy", "random")
        )  # fmt: skip


def test_draws_with_equal_seeds_are_equal_and_others_differ() -> None:
    space = parse_space(HEADS, "space.yaml")
    assert draws(space, seed=5) == draws(space, seed=5) != draws(space, seed=6)


@pytest.mark.parametrize(
    ("condition", "holding", "failing"),
    [
        ("entropy", ["entropy"], ["taylor", None, "entrop"]),
        (["entropy", "random"], ["entropy", "random"], ["taylor", None]),
        (None, [None], [0, "", False]),
        ({"above": 0.5}, [0.51, 1], [0.5, 0, None, "0.7", True]),
        ({"below": 0.5}, [0.49, -1], [0.5, 1, None, False]),
        ({"above": 0, "below": 1}, [0.5], [0, 1, -1, 2]),
    ],
)
def test_a_condition_holds_for_what_it_says(condition: Any, holding: list[Any], failing: list[Any]) -> None:
    [found] = only({"choice": [1], "when": {"outside": condition}}).conditions
    assert all(found.holds(value) for value in holding) and not any(found.holds(value) for value in failing)


def test_a_parameter_comes_after_those_that_its_conditions_name_however_they_are_written() -> None:
    for order in itertools.permutations(HEADS):
        paths = parse_space({path: HEADS[path] for path in order}, "space.yaml").paths
        assert sorted(paths) == sorted(HEADS)
        assert paths.index("prune.direction") > paths.index("prune.strategy")
        assert paths.index("learn.decay") > paths.index("learn.multiplier") > paths.index("grow.ratio")


def test_a_condition_may_name_a_setting_of_the_job() -> None:
    space = parse_space({"p": {"choice": [1, 2], "when": {"cycle.prune.strategy": "entropy"}}}, "space.yaml")
    assert all("p" in values for values in draws(space, 20, job={"cycle": {"prune": {"strategy": "entropy"}}}))
    assert draws(space, 20, job={"cycle": {"prune": {"strategy": "taylor"}}}) == [{}] * 20
    assert draws(space, 20, job={"cycle": None}) == [{}] * 20


def test_the_space_wins_over_the_job_where_both_name_a_setting() -> None:
    """A parameter whose own condition fails does not exist, whatever the job says about its path."""
    space = {
        "a": {"choice": [1, 2]},
        "b": {"choice": [1], "when": {"a": 2}},
        "c": {"choice": [1], "when": {"b": [1, 7]}},
    }
    for values in draws(parse_space(space, "space.yaml"), 50, job={"a": 2, "b": 7}):
        assert ("c" in values) == ("b" in values) == (values["a"] == 2)


@pytest.mark.parametrize(
    "space",
    [
        {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}},
        {"a": {"choice": [1], "when": {"c": 1}}, "b": {"choice": [1], "when": {"a": 1}},
         "c": {"uniform": [0, 2], "when": {"b": 1}}},
    ],
)  # fmt: skip
def test_conditions_in_a_circle_are_refused_for_each_parameter_in_it(space: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as refused:
        parse_space({"free": {"choice": [1]}, **space}, "space.yaml")
    assert {fault.key for fault in refused.value.faults} == set(space)
    assert all("circle" in fault.message for fault in refused.value.faults)


@pytest.mark.parametrize(
    ("parent", "condition"),
    [
        ({"choice": ["taylor", "entropy"]}, "entropi"),
        ({"choice": ["taylor", "entropy"]}, ["magnitude", "random"]),
        ({"choice": ["taylor", "entropy"]}, {"above": 0}),
        ({"choice": [1, 2]}, {"above": 2}),
        ({"uniform": [0, 1]}, {"above": 1}),
        ({"uniform": [0, 1]}, {"below": 0}),
        ({"uniform": [0, 1]}, {"above": 0.6, "below": 0.4}),
        ({"uniform": [0, 1]}, {"above": 2, "below": 3}),
        ({"uniform": [0, 1]}, "high"),
        ({"uniform": [0, 1], "step": 0.5}, {"above": 0.1, "below": 0.4}),
        ({"uniform": [0, 1], "step": 0.5}, 0.4),
        ({"integer": [0, 10], "step": 5}, [1, 2, 3]),
        ({"integer": [1, 4]}, {"above": 2, "below": 3}),
        ({"integer": [1, 4]}, 5),
    ],
)
def test_a_condition_that_no_value_of_its_parent_meets_is_refused(parent: dict[str, Any], condition: Any) -> None:
    message = message_of({"p": {"choice": [1], "when": {"q": condition}}, "q": parent})
    assert "can never exist: no value of q (" in message


@pytest.mark.parametrize(
    ("parent", "condition"),
    [
        ({"choice": ["taylor", "entropy"]}, ["none", "entropy"]),
        ({"choice": [None, "gpt2"]}, None),
        ({"uniform": [0, 1]}, {"above": 0.4, "below": 0.6}),
        ({"uniform": [0, 1]}, {"above": 0.9}),
        ({"uniform": [0, 1]}, {"below": 0.01}),
        ({"uniform": [0, 1], "step": 0.1}, 0.3),
        ({"uniform": [0, 1], "step": 0.1}, {"above": 0.25, "below": 0.35}),
        ({"integer": [0, 100], "step": 5}, [7, 65]),
        ({"integer": [1, 1000]}, {"above": 498, "below": 500}),
        ({"log_uniform": [1e-6, 1]}, {"above": 1e-3, "below": 2e-3}),
    ],
)
def test_a_condition_that_some_value_of_its_parent_meets_is_made_true(parent: dict[str, Any], condition: Any) -> None:
    space = parse_space({"p": {"choice": ["x", "y"], "when": {"q": condition}}, "q": parent}, "space.yaml")
    visited = [values for parameter, values in space.corner_assignments({}) if parameter.path == "p"]
    assert [values["p"] for values in visited] == ["x", "y"]
    child = next(parameter for parameter in space.parameters if parameter.path == "p")
    assert all(child.conditions[0].holds(values["q"]) for values in visited)


def test_conditions_that_can_hold_alone_but_never_together_are_refused() -> None:
    space = {
        "a": {"choice": ["x", "y"]},
        "b": {"choice": [1], "when": {"a": "x"}},
        "p": {"choice": [1], "when": {"b": 1, "a": "y"}},
    }
    assert "no value of a (x, y) meets" in message_of(space)


def test_conditions_at_every_depth_are_met_together() -> None:
    space = {
        "p": {"choice": [1], "when": {"a": ["x", "y"], "b": 1}},
        "a": {"choice": ["x", "y", "z"]},
        "b": {"choice": [0, 1], "when": {"a": ["y", "z"]}},
    }
    visited = [values for parameter, values in parse_space(space, "s").corner_assignments({}) if parameter.path == "p"]
    assert visited == [{"a": "y", "b": 1, "p": 1}]


# Corners


def test_the_corners_of_a_choice_are_all_its_values() -> None:
    assert only({"choice": ["a", "b", None]}).corners() == ("a", "b", None)


@pytest.mark.parametrize(
    ("body", "corners"),
    [
        ({"integer": [8, 32], "step": 8}, (8, 16, 32)),
        ({"integer": [8, 32]}, (8, 9, 32)),
        ({"integer": [1, 2]}, (1, 2)),
        ({"uniform": [0.1, 0.6], "step": 0.1}, (0.1, 0.2, 0.6)),
    ],
)
def test_the_corners_of_a_stepped_range_are_its_ends_and_its_first_step(
    body: dict[str, Any], corners: tuple[float, ...]
) -> None:
    found = only(body).corners()
    assert found == corners and [type(value) for value in found] == [type(value) for value in corners]


@pytest.mark.parametrize("body", [{"uniform": [50, 100]}, {"log_uniform": [1, 1000]}])
def test_the_corners_of_a_continuous_range_are_its_ends_and_a_broken_number_inside(body: dict[str, Any]) -> None:
    [ends] = body.values()
    corners: tuple[Any, ...] = only(body).corners()
    low, inside, high = corners
    assert [low, high] == ends and low < inside < high and inside != int(inside)


def test_corner_assignments_visit_every_corner_of_every_parameter_with_its_conditions_true() -> None:
    space = parse_space(HEADS, "space.yaml")
    visited = {(parameter.path, values[parameter.path]) for parameter, values in space.corner_assignments({})}
    assert visited == {(parameter.path, corner) for parameter in space.parameters for corner in parameter.corners()}


def test_corner_assignments_are_points_that_a_trial_could_draw() -> None:
    space = parse_space(HEADS, "space.yaml")
    for _, values in space.corner_assignments({}):
        expected = [parameter.path for parameter in space.parameters if space.active(parameter, values, {})]
        assert list(values) == expected


# Paths


def test_a_path_is_read_and_set_through_mappings_only() -> None:
    mapping: dict[str, Any] = {"a": {"b": 1, "c": None}, "d": "text"}
    assert get_path(mapping, "a.b") == 1 and get_path(mapping, "a") == {"b": 1, "c": None}
    assert [get_path(mapping, path) for path in ("a.c.x", "a.x", "d.e", "x.y.z")] == [None] * 4
    for path in ("a.b", "a.c.x", "d.e", "x.y.z"):
        set_path(mapping, path, 5)
        assert get_path(mapping, path) == 5


# Fixed values and rules


def test_a_plain_value_is_fixed_and_no_parameter() -> None:
    space = parse_space({"a.b": "taylor", "a.c": False, "a.d": {"choice": [1, 2], "when": {"a.b": "taylor"}}}, "s.yaml")
    assert space.constants == {"a.b": "taylor", "a.c": False} and space.paths == ("a.d",)
    assert all(values.keys() == {"a.d"} for values in draws(space, 10))


def test_every_drawn_point_meets_the_rules_and_all_that_meet_them_are_drawn() -> None:
    space = parse_space({"a": {"integer": [0, 4]}, "b": {"integer": [0, 4]}, "require": ["a + b == 4", "a < b"]}, "s")
    assert {(values["a"], values["b"]) for values in draws(space)} == {(0, 4), (1, 3)}


def test_a_rule_may_name_settings_of_the_job_and_fixed_values() -> None:
    space = parse_space({"a": {"integer": [0, 9]}, "c": 3, "require": ["a <= job.steps / 2", "a >= c"]}, "s")
    assert {values["a"] for values in draws(space, job={"job": {"steps": 10}})} == {3, 4, 5}


def test_a_rule_does_not_apply_where_a_parameter_that_it_names_does_not_exist() -> None:
    space = parse_space(
        {"a": {"choice": [0, 1]}, "b": {"integer": [0, 9], "when": {"a": 1}}, "require": ["b <= 2"]}, "s"
    )
    found = draws(space, job={"b": 7})
    assert {values["a"] for values in found} == {0, 1}
    assert {values["b"] for values in found if "b" in values} == {0, 1, 2}


def test_a_rule_that_hardly_any_point_meets_ends_in_an_error_and_not_in_a_point_that_breaks_it() -> None:
    space = parse_space({"a": {"uniform": [0, 1]}, "require": ["a == 0.123"]}, "s")
    with pytest.raises(ValueError, match="none of 1000 random points meets every 'require'"):
        space.draw({}, random.Random(0))


def test_corner_assignments_meet_the_rules_and_leave_out_corners_that_cannot() -> None:
    space = parse_space({"a": {"integer": [0, 9]}, "b": {"integer": [0, 9]}, "require": ["a + b >= 9", "a != 1"]}, "s")
    visited: list[tuple[str, dict[str, Any]]]
    visited = [(parameter.path, values) for parameter, values in space.corner_assignments({})]
    assert all(values["a"] + values["b"] >= 9 and values["a"] != 1 for _, values in visited)
    assert {(path, values[path]) for path, values in visited} == {("a", 0), ("a", 9), ("b", 0), ("b", 1), ("b", 9)}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("a <= 1", "needs a list of rules"),
        (["a <="], "cannot be read"),
        (["a"], "compares nothing"),
        ([3], "a rule is text"),
        (["open('x') == a"], "has no place in a rule"),
    ],
)
def test_a_malformed_rule_is_refused(rules: Any, said: str) -> None:
    assert said in message_of({"a": {"integer": [0, 9]}, "require": rules}, key="require")


def test_every_point_of_a_quantised_space_is_listed_once_in_the_order_of_its_file() -> None:
    space = parse_space(
        {"a": {"choice": ["x", "y"]}, "b": {"integer": [1, 2], "when": {"a": "y"}}, "c": {"uniform": [0, 1], "step": 1},
         "require": ["c < 1"]}, "s",
    )  # fmt: skip
    assert list(space.points({})) == [{"a": "x", "c": 0.0}, {"a": "y", "b": 1, "c": 0.0}, {"a": "y", "b": 2, "c": 0.0}]


def test_it_knows_its_own_points() -> None:
    space = parse_space(HEADS, "space.yaml")
    assert all(space.contains(values, {}) for values in draws(space, 100))
    point = {"prune.strategy": "entropy", "prune.direction": "low", "grow.ratio": 0.0}
    assert space.contains(point, {})
    for wrong in (
        {**point, "grow.ratio": 0.1}, {**point, "grow.ratio": 1.5}, {**point, "prune.strategy": "taylor"},
        {**point, "learn.multiplier": 2.0}, {**point, "other": 1}, {**point, "prune.direction": "up"},
        {**point, "grow.ratio": "0.0"}, {"prune.strategy": "taylor"}, {},
    ):  # fmt: skip
        assert not space.contains(wrong, {}), wrong


# Early phases are quantised


@pytest.mark.parametrize("path", ["cycle.prune.level", "training.clip_norm", "cycle.baseline.lr", "model.x", "data.x"])
def test_a_range_of_an_early_phase_takes_eleven_values_unless_it_says_otherwise(path: str) -> None:
    [parameter] = parse_space({path: {"uniform": [0.1, 0.6]}}, "s").parameters
    assert [parameter.value(index) for index in range(parameter.count or 0)] == [
        0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6,
    ]  # fmt: skip
    for body, count in (({"step": 0.25}, 3), ({"values": 4}, 4), ({"continuous": True}, None)):
        assert parse_space({path: {"uniform": [0.1, 0.6], **body}}, "s").parameters[0].count == count


def test_a_range_of_the_last_phase_is_continuous_unless_it_says_otherwise() -> None:
    for path in ("cycle.learn.lr", "cycle.continuous.every", "p"):
        assert parse_space({path: {"log_uniform": [1, 10]}}, "s").parameters[0].count is None
        assert parse_space({path: {"log_uniform": [1, 10], "values": 3}}, "s").parameters[0].count == 3


def test_the_values_of_a_logarithmic_range_have_equal_ratios_and_are_numbers_that_a_person_would_write() -> None:
    parameter = only({"log_uniform": [1e-5, 1e-1], "values": 5})
    values = [parameter.value(index) for index in range(5)]
    assert (
        values == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
        and sorted(set(drawn({"log_uniform": [1e-5, 1e-1], "values": 5}))) == values
    )
    assert [parameter.nearest(number) for number in (1e-9, 2e-4, 5e-4, 9)] == [1e-5, 1e-4, 1e-3, 1e-1]


@pytest.mark.parametrize(
    "body",
    [{"choice": ["a", "b", "c"]}, {"integer": [8, 32], "step": 8}, {"uniform": [0.1, 0.6], "step": 0.1},
     {"uniform": [0, 1], "values": 4}, {"log_uniform": [1, 1000], "values": 4}],
)  # fmt: skip
def test_every_value_of_a_quantised_parameter_has_an_equal_share_of_the_way(body: dict[str, Any]) -> None:
    parameter = only(body)
    shares = [parameter.at((index + 0.5) / 1200) for index in range(1200)]
    assert (
        parameter.count
        and [shares.count(parameter.value(index)) for index in range(parameter.count)]
        == [1200 / parameter.count] * parameter.count
    )


@pytest.mark.parametrize(
    "body",
    [{"uniform": [2, 6]}, {"log_uniform": [1e-5, 1e-1]}, {"integer": [0, 9]}, {"log_uniform": [1, 1000], "values": 4}],
)
def test_a_share_of_the_way_leads_back_to_its_value(body: dict[str, Any]) -> None:
    parameter = only(body)
    for share in (0.0, 0.1, 0.37, 0.5, 0.99):
        value: Any = parameter.at(share)
        assert parameter.at(parameter.share(value)) == pytest.approx(value)
        assert parameter.has(value)


def warnings_of(body: dict[str, Any], path: str = "cycle.prune.level", learn: Any = True) -> list[str]:
    return parse_space({path: body}, "s").warnings({"cycle": {"learn": learn}})


def test_what_keeps_trials_from_sharing_is_said_with_the_way_out() -> None:
    [decided] = warnings_of({"uniform": [0.1, 0.6]})
    assert "cycle.prune.level takes 11 values, 0.1 to 0.6," in decided and "'continuous: true' for all" in decided
    [continuous] = warnings_of({"uniform": [0.1, 0.6], "continuous": True})
    assert "cycle.prune.level is continuous" in continuous and "'step:'" in continuous
    [many] = warnings_of({"integer": [100, 1000]}, "cycle.baseline.steps")
    assert "cycle.baseline.steps has 901 values" in many and "larger 'step:'" in many


def test_nothing_is_said_of_what_can_be_shared_or_has_nothing_after_it() -> None:
    for body in ({"uniform": [0.1, 0.6], "step": 0.1}, {"choice": [0.1, 0.2]}, {"uniform": [0.1, 0.6], "values": 3}):
        assert warnings_of(body) == []
    assert warnings_of({"log_uniform": [1e-5, 1e-3]}, "cycle.learn.lr") == []
    assert warnings_of({"uniform": [0.1, 0.6], "continuous": True}, learn=None) == []
