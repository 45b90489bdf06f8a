"""A search space may include other files and use named groups of parameters; what comes out is one plain space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.errors import SpecError
from raysweep.job.space import Space, parse_space
from raysweep.job.spacefile import load_space
from raysweep.job.yamlfile import dump_mapping

GROWING = {
    "when": {"grow.ratio": {"above": 0}},
    "grow.init": {"choice": ["split", "rewind"]},
    "learn.rate": {"log_uniform": [1, 10], "when": {"grow.init": "split"}},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(name: str, content: dict[str, Any]) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_mapping(content))
    return name


def inline(**content: Any) -> Space:
    return load_space({key.replace("__", "."): body for key, body in content.items()}, "job.yaml")


def refused(content: dict[str, Any]) -> tuple[str, str, str]:
    """Return file, key and message of the one fault of a file `space.yaml`."""
    with pytest.raises(SpecError) as error:
        load_space(written("space.yaml", content), "job.yaml")
    [fault] = error.value.faults
    return fault.file, fault.key, fault.message


def test_a_group_adds_its_parameters_under_its_condition_and_their_own() -> None:
    space = inline(grow__ratio={"uniform": [0, 1], "step": 0.5}, groups={"growing": GROWING}, use=["growing"])
    assert space.paths == ("grow.ratio", "grow.init", "learn.rate")
    conditions = {p.path: [condition.path for condition in p.conditions] for p in space.parameters}
    assert conditions == {"grow.ratio": [], "grow.init": ["grow.ratio"], "learn.rate": ["grow.ratio", "grow.init"]}


def test_a_group_that_is_not_used_is_no_part_of_the_space() -> None:
    assert inline(a__b={"choice": [1, 2]}, groups={"growing": GROWING}).paths == ("a.b",)


def test_the_name_of_a_group_may_stand_without_a_list() -> None:
    assert inline(groups={"g": {"a.b": {"choice": [1, 2]}, "a.c": 3}}, use="g").constants == {"a.c": 3}


def test_an_included_file_gives_its_parameters_rules_fixed_values_and_groups() -> None:
    small = {"a.b": {"choice": [1, 2]}, "a.c": 5, "require": ["a.b <= 1"], "groups": {"growing": GROWING}}
    written("spaces/small.yaml", small)
    content = {"include": "small.yaml", "grow.ratio": {"choice": [0, 1]}, "use": ["growing"], "require": ["a.b >= 0"]}
    space = load_space(written("spaces/full.yaml", content), "job.yaml")
    assert set(space.paths) == {"a.b", "grow.ratio", "grow.init", "learn.rate"} and space.constants == {"a.c": 5}
    assert [rule.text for rule in space.rules] == ["a.b <= 1", "a.b >= 0"]


def test_an_entry_of_the_file_takes_the_place_of_an_included_one() -> None:
    written("base.yaml", {"a.b": {"choice": [1, 2]}, "a.c": {"choice": [1]}, "a.d": 7})
    content = {"include": ["base.yaml"], "a.b": 2, "a.d": {"choice": [8, 9]}}
    space = load_space(written("space.yaml", content), "job.yaml")
    assert space.paths == ("a.c", "a.d") and space.constants == {"a.b": 2}


def test_files_may_include_each_other_in_a_chain_and_twice_but_not_in_a_circle() -> None:
    written("one.yaml", {"a.b": {"choice": [1, 2]}})
    written("two.yaml", {"include": "one.yaml", "a.c": {"choice": [1]}})
    assert load_space(written("three.yaml", {"include": ["one.yaml", "two.yaml"]}), "job.yaml").paths == ("a.b", "a.c")
    written("one.yaml", {"include": "three.yaml"})
    with pytest.raises(SpecError, match=r"one.yaml: include = 'three.yaml': includes itself"):
        load_space("three.yaml", "job.yaml")


def test_an_inline_space_includes_from_the_folder_of_the_job() -> None:
    written("jobs/spaces/small.yaml", {"a.b": {"choice": [1, 2]}})
    assert load_space({"include": "spaces/small.yaml"}, "jobs/job.yaml").paths == ("a.b",)


def test_a_fault_names_the_file_in_which_the_entry_stands() -> None:
    written("base.yaml", {"a.b": {"choise": [1]}, "groups": {"g": {"a.c": {"uniform": [1, 0]}}}})
    with pytest.raises(SpecError) as error:
        load_space(written("space.yaml", {"include": "base.yaml", "use": "g", "a.d": [1]}), "job.yaml")
    found = {(fault.file, fault.key) for fault in error.value.faults}
    assert found == {("base.yaml", "a.b"), ("base.yaml", "a.c"), ("space.yaml", "a.d")}


def test_what_comes_out_is_written_as_one_plain_space() -> None:
    """A sweep's folder holds its job with the space inside; the files that it came from may be gone by then."""
    written(
        "base.yaml", {"grow.ratio": {"choice": [0, 1]}, "groups": {"growing": GROWING}, "require": "grow.ratio < 2"}
    )
    space = load_space(written("space.yaml", {"include": "base.yaml", "use": "growing", "a.b": 3}), "job.yaml")
    again = parse_space(space.raw, "resolved")
    assert (again.parameters, again.constants, again.rules) == (space.parameters, space.constants, space.rules)


@pytest.mark.parametrize(
    ("content", "key", "said"),
    [
        ({"include": "none.yaml"}, "include", "no such file; looked in ."),
        ({"include": {"a": 1}}, "include", "needs a name, or a list of names"),
        ({"use": [3]}, "use", "needs a name, or a list of names"),
        ({"use": ["g", "g"], "groups": {"g": {"a.b": 1}}}, "use", "gives a name twice"),
        ({"use": "growin", "groups": {"growing": GROWING}}, "use", "no 'growin'. Did you mean 'growing'?"),
        ({"groups": ["g"]}, "groups", "needs {name: {path: parameter}}"),
        ({"groups": {"g": 3}}, "groups.g", "needs {path: parameter}"),
        ({"groups": {"g": {"when": {"a": 1}}}}, "groups.g", "needs {path: parameter}"),
        ({"groups": {"g": {"when": 3, "a.b": {"choice": [1]}}}, "use": "g"}, "groups.g.when", "needs {path: value}"),
        ({"groups": {"g": {"when": {"c": 1}, "a.b": 3}}, "use": "g"}, "groups.g.a.b", "cannot stand under a condition"),
        ({"groups": {"g": {"when": {"c": 1}, "a.b": {"choice": [1], "when": {"c": 2}}}}, "use": "g"}, "groups.g.a.b",
         "names c in its own condition and in that of its group"),
        ({"groups": {"g": {"a.b": {"choice": [1]}}}, "use": "g", "a.b": 3}, "a.b", "is also in group 'g'"),
        ({"groups": {"g": {"a.b": {"choice": [1]}}}}, "", "holds no parameter"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused(content: dict[str, Any], key: str, said: str) -> None:
    file, found, message = refused(content)
    assert (file, found) == ("space.yaml", key) and said in message
