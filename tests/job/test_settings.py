"""The reference of settings says what the classes say, and its page is the generated one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.errors import UsageError
from raysweep.job.checks.sections import section_class
from raysweep.job.settings import Setting, find, inside, settings, settings_page, strategies, type_text

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_the_generated_one() -> None:
    fresh = "docs/settings.md is old: run 'python -m raysweep.job.settings > docs/settings.md'"
    assert PAGE.read_text(encoding="utf-8") == settings_page(), fresh


def test_every_setting_of_every_section_is_there() -> None:
    for section in ("", *(setting.key for setting in settings() if setting.type == "section")):
        fields = section_class(section).model_fields
        assert [setting.name for setting in inside(section)] == list(fields)
        for setting in inside(section):
            assert (setting.default == "required") == fields[setting.name].is_required()


def test_every_setting_is_described_in_sentences() -> None:
    assert [setting.key for setting in settings() if not setting.doc.endswith(".")] == []
    assert [setting.key for setting in settings() if not setting.type] == []


def test_a_setting_has_its_type_default_and_meaning() -> None:
    assert find("scale.lanes") == [
        Setting(
            key="scale.lanes",
            type="whole number, at least 1 and at most 1,000",
            default="1",
            doc="Trials that run at once, each on a group of workers that stays up from trial to trial.",
        )
    ]
    [lr] = find("cycle.learn.lr")
    assert (lr.type, lr.default) == ("number, above 0 and at most 1e+06", "required")
    [measure], [grow] = find("cycle.measure"), find("cycle.grow")
    assert (measure.default, grow.default) == ("", "null"), "one is always there, the other has to be asked for"


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "whole number"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "number, at least 0 and below 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "number, above 0 and at most 0.5"),
        ({"type": "boolean"}, "true or false"),
        ({"type": "string", "enum": ["a", "b"]}, "one of a, b"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text, or null"),
        ({"type": "array", "items": {"type": "string"}}, "list of: text"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "mapping of names to: number"),
        ({"type": "object", "additionalProperties": True}, "mapping"),
    ],
)
def test_a_type_is_said_in_words(schema: dict[str, Any], text: str) -> None:
    assert type_text(schema) == text


def test_a_strategy_is_found_by_its_kind_and_name_and_holds_its_options() -> None:
    [entropy] = find("prune.entropy")
    assert entropy.type == "strategy" and "Chosen by cycle.prune.strategy." in entropy.doc
    assert [option.key for option in inside("prune.entropy")] == ["prune.entropy.direction", "prune.entropy.sink_free"]
    assert find("prune.entropy.direction")[0].default == "required"
    assert inside("prune.taylor") == []


def test_an_option_is_found_by_its_path_in_a_job() -> None:
    assert [option.key for option in find("search.stopping.reduction")] == [
        "schedulers.asha.reduction", "schedulers.hyperband.reduction", "schedulers.successive_halving.reduction",
    ]  # fmt: skip


def test_what_is_chosen_by_a_setting_stands_among_its_values() -> None:
    for strategy in strategies():
        if strategy.is_section and not strategy.key.startswith("models."):
            [chosen] = find(strategy.doc.split("Chosen by ")[1].rstrip("."))
            assert strategy.name in chosen.type


@pytest.mark.parametrize(
    ("key", "meant"),
    [("cycle.lern.lr", "cycle.learn.lr"), ("prune.entropie", "prune.entropy"), ("seeds", "seed")],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"no setting '{key}'\. Did you mean '{meant}'\?"):
        find(key)


def test_nothing_is_meant_where_nothing_is_near() -> None:
    with pytest.raises(UsageError, match=r"no setting 'zzz'\. 'raysweep help' lists the sections of a job\."):
        find("zzz")
