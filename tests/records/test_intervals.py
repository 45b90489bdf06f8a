"""Means and paired differences, against numbers from tables and from counting by hand."""

from __future__ import annotations

import math
import random

import pytest

from raysweep.records.statistics import Difference, mean_of, paired


def by_seed(*numbers: float) -> dict[int, float]:
    return dict(enumerate(numbers))


def differences(*numbers: float) -> Difference:
    found = paired(by_seed(*numbers), by_seed(*[0.0] * len(numbers)))
    assert found is not None
    return found


def test_an_interval_is_students() -> None:
    # t(0.975, 2) = 4.30265, t(0.975, 4) = 2.77645 (any table of Student's distribution)
    three = mean_of([1.0, 2.0, 3.0])
    half = 4.30265 * 1.0 / math.sqrt(3)
    assert (three.mean, three.count) == (2.0, 3)
    assert (three.low, three.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    five = mean_of([2.0, 4.0, 4.0, 4.0, 6.0])
    assert five.high == pytest.approx(4 + 2.77645 * math.sqrt(2) / math.sqrt(5), abs=1e-5)


@pytest.mark.parametrize("numbers", [[2.5], [1.0, math.inf]])
def test_one_number_or_an_infinite_one_has_no_interval(numbers: list[float]) -> None:
    found = mean_of(numbers)
    assert found.mean == sum(numbers) / len(numbers) and found.low is None and found.high is None


def test_equal_numbers_have_an_interval_without_width() -> None:
    found = mean_of([2.0, 2.0, 2.0])
    assert (found.low, found.mean, found.high) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    generator = random.Random(0)
    held = 0
    for _ in range(2_000):
        found = mean_of([generator.gauss(3.0, 0.7) for _ in range(3)])
        assert found.low is not None and found.high is not None
        held += found.low <= 3.0 <= found.high
    assert held / 2_000 == pytest.approx(0.95, abs=0.015)  # 3 standard errors


def test_numbers_are_paired_by_seed() -> None:
    found = paired({1: 5.0, 2: 7.0, 3: 6.0, 9: 100.0}, {3: 5.0, 1: 4.5, 2: 6.0, 8: -100.0})
    assert found is not None and found.count == 3
    assert found.mean == pytest.approx((0.5 + 1.0 + 1.0) / 3)
    assert paired({1: 5.0}, {2: 5.0}) is None


def test_few_pairs_are_tested_by_students_t() -> None:
    # differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom; p = 1 - t / sqrt(t^2 + 2) = 0.07418
    found = differences(1.0, 2.0, 3.0)
    t = 2 * math.sqrt(3)
    assert found.test == "t" and found.p_value == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert differences(-1.0, -2.0, -3.0).p_value == pytest.approx(found.p_value)


def test_six_pairs_or_more_are_tested_by_flipping_their_signs() -> None:
    assert differences(1, 2, 3, 4, 5, 6).p_value == 2 / 64  # all one way: it and its mirror image
    assert differences(1, 2, 3, 4, 5, 6).test == "sign_flip"
    # The sum is 19. Of the 64 choices of signs: none flipped 21, 1 flipped 19; and their mirror images.
    assert differences(-1, 2, 3, 4, 5, 6).p_value == 4 / 64
    assert differences(1, -1, 2, -2, 3, -3).p_value == 1.0


def test_a_sign_flip_is_not_misled_by_rounding() -> None:
    # 0.1 and 0.2 flipped with 0.3 kept add up as 0.3 flipped with the others kept does.
    tenths = differences(0.1, 0.2, -0.3, 0.4, 0.5, 0.6)
    assert tenths.p_value == differences(1, 2, -3, 4, 5, 6).p_value


def test_many_pairs_are_tested_by_students_t() -> None:
    assert differences(*range(1, 17)).test == "sign_flip" and differences(*range(1, 18)).test == "t"


@pytest.mark.parametrize("count", [2, 3, 20])
def test_equal_differences_leave_signs_to_flip_only(count: int) -> None:
    found = differences(*[0.5] * count)
    assert (found.test, found.p_value) == ("sign_flip", 2 / 2**count)
    assert (differences(*[0.0] * count).test, differences(*[0.0] * count).p_value) == ("sign_flip", 1.0)


def test_one_pair_is_tested_by_nothing() -> None:
    found = differences(0.5)
    assert (found.mean, found.low, found.p_value, found.test) == (0.5, None, None, None)


def test_both_tests_find_a_difference_that_is_not_there_as_often_as_they_say() -> None:
    generator = random.Random(1)
    for count, test in ((3, "t"), (8, "sign_flip")):
        found = [differences(*(generator.gauss(0, 1) for _ in range(count))) for _ in range(1_000)]
        assert {each.test for each in found} == {test}
        rate = sum(each.p_value is not None and each.p_value <= 0.05 for each in found) / 1_000
        assert rate == pytest.approx(0.05, abs=0.021)  # 3 standard errors
