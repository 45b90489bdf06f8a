"""JSON Schemas of a job and of a search space, for editors and for the reference of settings.

They come from the classes that check a job, so that they cannot say anything else. A file that fits its schema can
still break a rule between settings, which `raysweep validate` finds.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

from raysweep.job import registry
from raysweep.job.checks.sections import STRATEGY_KEYS, TRIAL_SECTIONS, section_class
from raysweep.job.entries import FORMS
from raysweep.job.spec import JobSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOTTED = r"\."
"""Pattern of the name of a module outside raysweep."""
OF_OPTIONS = ("properties", "required")
"""What the schema of a section takes over from that of a strategy's options."""
Schema = dict[str, Any]

NUMBERS: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
PLAIN: Schema = {"type": ["string", "number", "boolean", "null"]}
BOUNDS: Schema = {"type": "object", "minProperties": 1, "additionalProperties": False,
                  "properties": {"above": {"type": "number"}, "below": {"type": "number"}}}  # fmt: skip
SPACE_PARTS: dict[str, Schema] = {
    "Conditions": {
        "description": "Other parameters, or settings of the job, that must have a value for this parameter to exist: "
        "{path: value}, a list of values, {above: x} or {below: x}.",
        "type": "object",
        "additionalProperties": {"anyOf": [PLAIN, {"type": "array", "items": PLAIN, "minItems": 1}, BOUNDS]},
    },
    "Parameter": {
        "type": "object",
        "properties": {
            "choice": {"description": "The values to choose from.", "type": "array", "items": PLAIN, "minItems": 1},
            "uniform": {"description": "[low, high], every number equally likely.", **NUMBERS},
            "log_uniform": {"description": "[low, high], above 0, every ratio equally likely.", **NUMBERS},
            "integer": {"description": "[low, high], whole numbers.", **NUMBERS},
            "step": {
                "description": "Distance between neighbouring values; divides the range.",
                "type": "number",
                "exclusiveMinimum": 0,
            },
            "values": {
                "description": "Number of evenly spaced values, both ends included.",
                "type": "integer",
                "minimum": 2,
            },
            "continuous": {
                "description": "Take every number of a range before the learn phase, which otherwise takes eleven so "
                "that trials can share phases.",
                "type": "boolean",
            },
            "when": {"$ref": "#/$defs/Conditions"},
        },
        "additionalProperties": False,
        "oneOf": [{"required": [form]} for form in FORMS],
    },
    "Entry": {
        "anyOf": [
            {"$ref": "#/$defs/Parameter"},
            {"description": "One value for all trials.", "type": ["string", "number", "boolean"]},
        ]
    },
    "Names": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "uniqueItems": True}]},
}


def job_schema() -> Schema:
    """Return the JSON Schema of a job file, the options of raysweep's own strategies included."""
    schema = _tidied(JobSpec.model_json_schema())
    sections = schema["$defs"]
    # Sections that share a class would share these additions, but each section that names a strategy has its own.
    for section in STRATEGY_KEYS:
        _add_options(section, sections[section_class(section).__name__])
    # To pydantic a space is any mapping: parse_space checks it, and what it accepts is described by hand above.
    space = sections["SearchSpec"]["properties"]["space"]
    space["anyOf"] = [{"type": "string"}, {"$ref": "#/$defs/Space"}, {"type": "null"}]
    sections |= {"Space": _space_body(schema), **SPACE_PARTS}
    return {"$schema": DIALECT, **schema}


def space_schema() -> Schema:
    """Return the JSON Schema of a search-space file, with every path that a trial of ours can have."""
    return {"$schema": DIALECT, **_space_body(job_schema()), "$defs": SPACE_PARTS}


def options_schema(kind: str, name: str) -> Schema:
    """Return the JSON Schema of a strategy's options, each described by the docstring under its field.

    Raises:
        UnknownNameError: there is no such strategy.
    """
    strategy = registry.load(kind, name)
    schema = _tidied(registry.adapter(strategy).json_schema())
    docs = _field_docs(strategy)
    for option, body in schema.get("properties", {}).items():
        if option in docs:
            body["description"] = docs[option]
    return schema


def section_body(schema: Schema, body: Schema) -> Schema | None:
    """Return the schema of a section, or None of a setting that is no section.

    Args:
        schema: the job's schema, which holds all sections.
        body: what the schema says of a field: a section, perhaps an optional one, or a setting.
    """
    # An optional section is `anyOf: [section, null]`. A search space, inlined in a job, has no settings of its own.
    forms = [form["$ref"].rpartition("/")[2] for form in (body, *body.get("anyOf", ())) if "$ref" in form]
    return next((schema["$defs"][name] for name in forms if name != "Space"), None)


def _space_body(schema: Schema) -> Schema:
    """Return the schema of a space, without the parts that it refers to."""
    known: dict[str, Schema] = {}
    # Two strategies may have options of one name; an editor can only show the description of one of them.
    for path, doc in _trial_paths(schema):
        known.setdefault(path, {"$ref": "#/$defs/Entry", "description": doc})
    group = {
        "type": "object",
        "properties": {"when": {"$ref": "#/$defs/Conditions"}} | known,
        "additionalProperties": {"$ref": "#/$defs/Entry"},
        "minProperties": 1,
    }
    own = {
        "include": {"description": "Files whose entries, rules and groups count here too.", "$ref": "#/$defs/Names"},
        "groups": {
            "description": "Parameters that belong together, by the name of their group.",
            "type": "object",
            "additionalProperties": group,
        },
        "use": {"description": "The groups that are part of this space.", "$ref": "#/$defs/Names"},
        "require": {
            "description": "Comparisons that every point meets, such as 'cycle.learn.steps * 2 <= 100'.",
            "$ref": "#/$defs/Names",
        },
    }
    return {
        "description": "A search space: by dotted path into the job, a fixed value or a parameter.",
        "type": "object",
        "properties": own | known,
        "additionalProperties": {"$ref": "#/$defs/Entry"},
    }


def _trial_paths(schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield the path and description of each setting that can differ from trial to trial."""
    for section in TRIAL_SECTIONS:
        yield from _leaves(schema, section, schema["properties"][section])
    for section, strategies in STRATEGY_KEYS.items():
        if section.split(".")[0] in TRIAL_SECTIONS:
            for kind, _ in strategies:
                for name in registry.available(kind):
                    for option, body in options_schema(kind, name).get("properties", {}).items():
                        yield f"{section}.{option}", f"Option of {name}. {body.get('description', '')}".strip()


def _leaves(schema: Schema, path: str, body: Schema) -> Iterator[tuple[str, str]]:
    """Yield the path and description of each setting inside a section, at any depth."""
    section = section_body(schema, body)
    if section is None:
        yield path, body["description"]
        return
    for name, inner in section["properties"].items():
        yield from _leaves(schema, f"{path}.{name}", inner)


def _add_options(section: str, body: Schema) -> None:
    """Add to a section's schema the names that its strategies can have, and the options of each."""
    # `if` and `then` for each strategy, since which keys are right depends on the value of another key.
    clauses: list[Schema] = []
    fields: dict[str, Schema] = body["properties"]
    options: set[str] = set()
    for kind, key in STRATEGY_KEYS[section]:
        fields[key] |= _names_of(kind)
        for name in registry.available(kind):
            schema = options_schema(kind, name)
            options |= schema.get("properties", {}).keys()
            if schema.get("properties"):
                chosen = _is_chosen(key, _written(kind, name), fields[key].get("default"))
                clauses.append({"if": chosen, "then": {key: schema[key] for key in OF_OPTIONS if key in schema}})
    keys = [key for _, key in STRATEGY_KEYS[section]]
    ours = {"properties": {key: {"not": {"pattern": DOTTED}} for key in keys}}
    # A module outside raysweep may take any option; where all strategies are ours, a misspelt option can be found.
    clauses.append({"if": ours, "then": {"propertyNames": {"enum": sorted({*fields, *options})}}})
    body["allOf"] = clauses


def _is_chosen(key: str, names: list[str], default: Any) -> Schema:
    condition: Schema = {"properties": {key: {"enum": names}}}
    # `properties` holds where the key is missing, which is right for the default alone.
    return condition if default in names else condition | {"required": [key]}


def _names_of(kind: str) -> Schema:
    if kind == "models":
        # Any name on the hub and any folder is a model too.
        return {"examples": sorted(registry.scratch_sizes())}
    dotted = {"type": "string", "pattern": DOTTED}
    return {"anyOf": [{"enum": registry.available(kind)}, dotted]}


def _written(kind: str, name: str) -> list[str]:
    """Return the names in a job that stand for a strategy; a family of models has one for each of its sizes."""
    if kind != "models":
        return [name]
    return sorted(size for size, family in registry.scratch_sizes().items() if family == name)


@lru_cache
def _field_docs(strategy: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, or else the `help` of its metadata."""
    docs: dict[str, str] = {}
    # The subclass comes last: its docstring of a field replaces that of the base.
    for base in reversed(strategy.__mro__):
        # Contracts, protocols and `object` have no fields; reading the source of typing.py would take half a second.
        if "__dataclass_fields__" not in vars(base):
            continue
        # Python keeps no docstring of a field, so the source is read. pydantic does the same for its own models, but
        # not for the dataclasses that strategies are.
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in pairwise(definition.body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                text = following.value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    docs[ast.unparse(statement.target)] = " ".join(text.value.split())
    helps = {field.name: field.metadata.get("help") for field in dataclasses.fields(strategy)}
    return {name: f"{text[0].upper()}{text[1:]}." for name, text in helps.items() if text} | docs


def _tidied(schema: Any) -> Any:
    """Return a schema without the titles that pydantic makes of names, and each description in one line."""
    if isinstance(schema, list):
        return [_tidied(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    tidy = {key: _tidied(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].split())
    return tidy
