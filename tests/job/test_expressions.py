"""A rule is one comparison of sums of names and numbers; nothing else is read, and nothing is executed."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from raysweep.job.expressions import ParsedComparison, parse

VALUES: dict[str, Any] = {
    "cycle.learn.steps": 300,
    "cycle.baseline.steps": 500,
    "baseline.perplexity": 20.0,
    "perplexity": 22.5,
    "strategy": "taylor",
    "other": "taylor",
    "zero": 0,
    "level": 0.3,
    "third": 0.1,
    "infinite": math.inf,
    "on": True,
}


def violation(text: str) -> float:
    return parse(text).violation(VALUES.get)


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("cycle.learn.steps * 2 <= cycle.baseline.steps", 100),
        ("cycle.learn.steps + 100 <= cycle.baseline.steps", -100),
        ("cycle.baseline.steps >= 2 * (cycle.learn.steps - 50)", 0),
        ("cycle.baseline.steps >= 2 * cycle.learn.steps - 50", 50),
        ("perplexity <= 1.1 * baseline.perplexity", 0.5),
        ("perplexity / baseline.perplexity > 1", -0.125),
        ("-perplexity < -22", -0.5),
        ("+perplexity == 20", 2.5),
        ("perplexity != 20", -2.5),
        ("cycle.baseline.steps - 100 - 100 == cycle.learn.steps", 0),
        ("third * 3 <= level", 0),
        ("third * 3 >= level", 0),
        ("on == 1", 0),
    ],
)
def test_the_violation_is_the_difference_of_the_sides_in_the_direction_that_misses(text: str, missed: float) -> None:
    assert violation(text) == pytest.approx(missed, abs=1e-12)
    assert parse(text).holds(VALUES.get) is (missed <= 0)


@pytest.mark.parametrize("text", ["third * 3 < level", "level > third * 3", "perplexity != 22.5"])
def test_equality_misses_a_strict_comparison(text: str) -> None:
    assert violation(text) > 0 and not parse(text).holds(VALUES.get)


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ('strategy == "taylor"', 0),
        ("strategy == 'random'", 1),
        ("'random' != strategy", 0),
        ("strategy != other", 1),
        ("strategy == level", 1),
        ("strategy != 'a, (b) <= c'", 0),
    ],
)
def test_text_is_equal_or_not(text: str, missed: float) -> None:
    assert violation(text) == missed


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("level / zero <= 1", math.inf),
        ("level / zero != 1", math.inf),
        ("infinite - infinite <= 1", math.inf),
        ("infinite <= 1", math.inf),
        ("1 <= infinite", -math.inf),
        ("infinite <= infinite", 0),
    ],
)
def test_a_side_that_is_no_number_misses_by_infinity(text: str, missed: float) -> None:
    assert violation(text) == missed


def test_it_knows_the_names_that_it_reads() -> None:
    assert parse("a.b * 2 + a.b <= (c - d.e.f) / 3").names == {"a.b", "c", "d.e.f"}
    assert parse("a == 'b.c'").names == {"a"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is text"),
        ("a <=", "cannot be read near character"),
        ("a", "compares nothing"),
        ("a + 1", "compares nothing"),
        ("a <= b and b <= c", "compares nothing"),
        ("a <= b <= c", "more than once"),
        ("a in b", "by one of <= <"),
        ("a is b", "by one of"),
        ("1 <= 2", "names nothing"),
        ("a <= 'b'", "only be compared by == or !="),
        ("a + 'b' == c", "''b'' has no place"),
        ("a ** 2 <= b", "'a ** 2' has no place"),
        ("a // 2 <= b", "has no place"),
        ("a[0] <= b", "'a[0]' has no place"),
        ("f(a) <= b", "'f(a)' has no place"),
        ("a <= (1).real", "has no place"),
        ("__import__('os').system('true') == a", "has no place"),
        ("(lambda: 1)() <= a", "has no place"),
        ("[x for x in a] == b", "has no place"),
        ("a <= True", "'True' has no place"),
        ("a <= None", "'None' has no place"),
        ("a <= 1e999", "has no place"),
        ("a <= 2j", "has no place"),
        ("a <= 1" + "0" * 400, "has no place"),
        ("not a <= b", "compares nothing"),
        ("(a := 1) <= b", "has no place"),
        ("f'{a}' == b", "has no place"),
        ("a <= " + "-" * 600 + "1", "at most 500 characters"),
    ],
)
def test_anything_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="rule|compare|character|names|has no place") as refused:
        parse(text)
    assert said.replace("''b''", "\"'b'\"") in str(refused.value)


def test_a_rule_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="a rule is text"):
        parse(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unknown <= 1", "'unknown' is not a number or text"),
        ("unknown == 'x'", "'unknown' is not a number or text"),
        ("strategy * 2 <= 1", "'strategy' is the text 'taylor', not a number"),
        ("-strategy <= 1", "is the text 'taylor'"),
        ("strategy <= other", "only be compared by == or !="),
        ("strategy <= level", "only be compared by == or !="),
    ],
)
def test_a_name_must_stand_for_what_the_rule_needs(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="stands|text") as refused:
        parse(text).holds(VALUES.get)
    assert said in str(refused.value)


def test_rules_that_are_written_alike_are_equal_and_travel() -> None:
    rule = parse("a.b  <=\n 2")
    assert rule == parse("a.b <= 2") and rule != parse("a.b <= 3") and hash(rule) == hash(parse("a.b <= 2"))
    copied: ParsedComparison = pickle.loads(pickle.dumps(rule))
    assert copied.violation({"a.b": 5}.get) == 3
