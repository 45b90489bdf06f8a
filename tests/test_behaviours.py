"""The tables of behaviours name tests that exist."""

from __future__ import annotations

import re
from functools import cache

import pytest
from helpers import REPOSITORY

TABLE, PNN = ((REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("behaviours.md", "pnn.md"))
ROWS = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", TABLE, flags=re.MULTILINE)
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", TABLE + PNN)))


@cache
def text_of(file: str) -> str:
    return (REPOSITORY / "tests" / file).read_text(encoding="utf-8")


def test_both_lists_are_whole() -> None:
    assert [int(number) for number, _ in ROWS] == [*range(1, 21), *range(1, 26)]
    assert all("::test_" in tests or "not built yet" in tests for _, tests in ROWS)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str) -> None:
    assert f"def {name}(" in text_of(file)
