"""The tables of behaviours name tests that exist, and for each a fault that it finds."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from support.jobs import REPOSITORY

from benchmarks.mutations import Mutation, mutations_of, page

TABLE, PNN = ((REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("behaviours.md", "pnn.md"))
ROWS = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", TABLE, flags=re.MULTILINE)
TEST = r"`([\w/]+\.py)::(test_\w+)`"
MUTATIONS = mutations_of()
NAMED = sorted(set(re.findall(TEST, TABLE + PNN)))


@cache
def text_of(file: str) -> str:
    return (REPOSITORY / "tests" / file).read_text(encoding="utf-8")


def test_both_lists_are_whole() -> None:
    assert [int(number) for number, _ in ROWS] == [*range(1, 21), *range(1, 26)]
    assert all("::test_" in tests or "not built yet" in tests for _, tests in ROWS)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str) -> None:
    assert f"def {name}(" in text_of(file)


# Faults to plant; benchmarks/mutations.py tries them out.


def test_every_named_test_has_a_fault_to_find() -> None:
    """But for those that start a Ray cluster."""
    kinds = ["property"] * 20 + ["behaviour"] * 25
    named = {
        (f"{kind} {number}", f"{file}::{name}")
        for kind, (number, cell) in zip(kinds, ROWS, strict=True)
        for file, name in re.findall(TEST, cell)
        if "pytest.mark.ray" not in text_of(file)
    }
    assert named == {(mutation.behaviour, mutation.test.partition("[")[0]) for mutation in MUTATIONS}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_fault_can_be_planted_and_is_still_a_program(mutation: Mutation) -> None:
    code = (REPOSITORY / mutation.file).read_text(encoding="utf-8")
    planted = mutation.planted(code)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(code))


def test_faults_differ() -> None:
    assert len({(m.file, m.find, m.replace, m.test) for m in MUTATIONS}) == len(MUTATIONS)


def test_a_text_that_does_not_stand_there_exactly_once_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^property 4: the stored weights .* stands 0 times in .*, not once"):
        next(m for m in MUTATIONS if m.behaviour == "property 4").planted("")


def test_the_page_of_faults_is_that_of_the_file() -> None:
    assert (REPOSITORY / "docs" / "mutations.md").read_text(encoding="utf-8") == page(MUTATIONS)
