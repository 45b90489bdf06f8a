"""Every setting of a job as plain data: its key, type, default and meaning, read from the schema of a job.

`raysweep help` prints them, and `python -m raysweep.job.settings > docs/settings.md` writes the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from raysweep.errors import UsageError
from raysweep.job import registry
from raysweep.job.checks.sections import STRATEGY_KEYS
from raysweep.job.schema import DOTTED, Schema, job_schema, options_schema, section_body

TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
REQUIRED = "required"
BAR = r"\|"
INTRODUCTION = """# Settings

All settings of a job, with their types and defaults. This page is generated from the code
(`python -m raysweep.job.settings > docs/settings.md`); `raysweep help cycle.learn` prints the same of one setting.

For completion and checks in an editor, write the schema with `raysweep schema job > job.schema.json` and put
`# yaml-language-server: $schema=job.schema.json` in the first line of a job; `raysweep schema space` is that of a
search space. `raysweep validate` finds more: it also checks the rules between settings.

`null` leaves an optional setting out.

"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a job, one of its sections, a strategy, or an option of a strategy."""

    key: str
    """Dotted path in the job; of a strategy `<kind>.<name>`, and of its options `<kind>.<name>.<option>`."""
    type: str
    default: str
    """As YAML; `required` where the job must give it."""
    doc: str

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def is_section(self) -> bool:
        """Whether it holds other settings."""
        return self.type in ("section", "strategy")


# Making the schema takes a second, since it reads the sources of all strategies; `find` and `inside` need it often.
@cache
def settings() -> tuple[Setting, ...]:
    """Return every section and setting of a job, each section before its settings."""
    schema = job_schema()
    return tuple(_settings_in(schema, schema, ""))


@cache
def strategies() -> tuple[Setting, ...]:
    """Return every strategy of raysweep that a job can name, each before its options."""
    found: list[Setting] = []
    for section, kinds in STRATEGY_KEYS.items():
        for kind, key in kinds:
            for name in registry.available(kind):
                about = f"{registry.first_line(kind, name)} Chosen by {section}.{key}."
                found.append(Setting(key=f"{kind}.{name}", type="strategy", default="", doc=about))
                schema = options_schema(kind, name)
                for option, body in schema.get("properties", {}).items():
                    default = _default(body, option in schema.get("required", ()))
                    doc = body.get("description", "")
                    found.append(Setting(key=f"{kind}.{name}.{option}", type=type_text(body), default=default, doc=doc))
    return tuple(found)


def find(key: str) -> list[Setting]:
    """Return what a key stands for: one setting, or the options of several strategies that have its path in a job.

    Raises:
        UsageError: there is no such setting.
    """
    everything = (*settings(), *strategies())
    found = [setting for setting in everything if setting.key == key]
    # A person sees an option as `cycle.prune.direction` in a job, and rarely knows whose option it is.
    section, _, option = key.rpartition(".")
    kinds = [kind for kind, _ in STRATEGY_KEYS.get(section, ())]
    found = found or [s for s in strategies() if s.key.split(".")[0] in kinds and s.key.split(".")[2:] == [option]]
    if not found:
        close = get_close_matches(key, [setting.key for setting in everything], n=1, cutoff=0.5)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"no setting {key!r}.{meant} 'raysweep help' lists the sections of a job.")
    return found


def inside(key: str = "") -> list[Setting]:
    """Return the settings directly inside a section or a strategy; without a key, the top level of a job."""
    prefix = f"{key}." if key else ""
    # Without a key every strategy's kind would pass for a part of the top level.
    everything = settings() if not key else (*settings(), *strategies())
    return [s for s in everything if s.key.startswith(prefix) and "." not in s.key.removeprefix(prefix)]


def settings_page() -> str:
    """Return the reference of all settings and options as Markdown."""
    parts = [INTRODUCTION, "## The top level\n\n", _table(inside())]
    for section in settings():
        if section.is_section:
            default = "Required. " if section.default == REQUIRED else ""
            parts.append(f"\n## `{section.key}`\n\n{default}{section.doc}\n\n{_table(inside(section.key))}")
    parts.append("\n## Options of strategies\n\nA strategy's options stand in the section that names it.\n")
    for strategy in strategies():
        # Strategies without options are listed by `raysweep list`; here they would only be headings.
        if strategy.is_section and (options := inside(strategy.key)):
            parts.append(f"\n### `{strategy.key}`\n\n{strategy.doc}\n\n{_table(options)}")
    return "".join(parts)


def type_text(body: Schema) -> str:
    """Return the type of a setting in words, from its schema."""
    # Before the type: an enum has one, too, but its values say more.
    if "enum" in body:
        return f"one of {', '.join(map(_yaml, body['enum']))}"
    if forms := body.get("anyOf") or body.get("oneOf"):
        return ", or ".join(map(type_text, forms))
    if "$ref" in body:
        return "search space" if body["$ref"].endswith("/Space") else "section"
    # The pattern is of use to an editor; a person reads what it stands for.
    if body.get("pattern") == DOTTED:
        return "the dotted name of a module"
    kind = body.get("type")
    if kind == "array":
        return f"list of: {type_text(body['items'])}"
    if kind == "object":
        values = body.get("additionalProperties")
        return f"mapping of names to: {type_text(values)}" if isinstance(values, dict) else "mapping"
    bounds = [text.format(_number(body[bound])) for bound, text in BOUNDS.items() if bound in body]
    return f"{TYPES[str(kind)]}{', ' if bounds else ''}{' and '.join(bounds)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _settings_in(schema: Schema, body: Schema, prefix: str) -> Iterator[Setting]:
    for name, inner in body["properties"].items():
        key, section = f"{prefix}{name}", section_body(schema, inner)
        kind = type_text(inner) if section is None else "section"
        default = _default(inner, name in body.get("required", ()), is_section=section is not None)
        yield Setting(key=key, type=kind, default=default, doc=_whole(inner, section))
        if section is not None:
            yield from _settings_in(schema, section, f"{key}.")


def _whole(body: Schema, section: Schema | None) -> str:
    """Return the description of a field, followed by that of the section's class where it says more."""
    own, of_class = body.get("description", ""), (section or {}).get("description", "")
    # pydantic already uses the class's description where the field has none, so they can be the same.
    return " ".join(dict.fromkeys(text for text in (own, of_class) if text))


def _default(body: Schema, required: bool, *, is_section: bool = False) -> str:
    if required:
        return REQUIRED
    value = body.get("default")
    # The default of a section that is always there is that of each of its settings, which are listed on their own.
    return "" if is_section and value is not None else _yaml(value)


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        # 1 and not 1.0, and six digits of 1/6: this is read, not parsed.
        return f"{value:g}"
    return str(value)


def _table(rows: list[Setting]) -> str:
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        default = row.default if row.default in ("", REQUIRED) else f"`{row.default}`"
        cells = [f"`{row.name}`", row.type, default, row.doc]
        # A bar would end the cell.
        lines.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_page(), end="")
