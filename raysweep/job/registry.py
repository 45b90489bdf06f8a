"""From a name in YAML to code: the folder is the registry, a strategy's name is its file's name.

A dotted name (`my_package.mine`) reaches a module outside raysweep. Every module of a kind holds one class with that
kind's fixed name, a frozen dataclass whose fields are its YAML options. Ours derive from their contract
(`class Pruner(contracts.Pruner)`), those outside need not.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pydantic

from raysweep.errors import UsageError, known_names_hint

KINDS = {
    "prune": ("strategies.prune", "Pruner"),
    "grow": ("strategies.grow", "Grower"),
    "init": ("strategies.init", "Initializer"),
    "samplers": ("strategies.samplers", "Sampler"),
    "schedulers": ("strategies.schedulers", "Scheduler"),
    "exits": ("strategies.exits", "Exit"),
    "models": ("networks.models", "Family"),
    "tasks": ("networks.tasks", "Task"),
    "analyses": ("science.pnn.analyses", "Analysis"),
}
"""Kind as `raysweep list` names it: (package below raysweep that holds it, name of the class in each file)."""


# The contracts say the same, but lie above this room, which must not import them:
# tests/job/test_registry.py holds both to each other.
DEFAULTS: dict[str, dict[str, Any]] = {
    "prune": {"requires": ()},
    "samplers": {"cannot": (), "whole": False},
}
"""What a strategy of a kind may leave out, with the value it then has."""


class UnknownNameError(UsageError):
    """A name that no file of the kind has."""


def available(kind: str) -> list[str]:
    """Return the names of one kind, sorted, without importing their files."""
    folder = importlib.import_module(f"raysweep.{KINDS[kind][0]}")
    return list(_modules(tuple(folder.__path__)))


def module_of(kind: str, name: str) -> str:
    """Return the dotted name of the module that holds a strategy of ours."""
    return f"raysweep.{KINDS[kind][0]}.{name}"


@lru_cache
def _modules(path: tuple[str, ...]) -> list[str]:
    # Cached, because checking the points of a large sweep asks for the names thousands of times.
    return sorted(module.name for module in pkgutil.iter_modules(path))


@lru_cache
def scratch_sizes() -> dict[str, str]:
    """Return the family of every from-scratch size."""
    # Cached, because this imports every family.
    return {size: family for family in available("models") for size in load("models", family).sizes}


@lru_cache
def _adapter(strategy: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(strategy)


def load(kind: str, name: str) -> Any:
    """Return the class behind a name, with the defaults of its kind for what it leaves out.

    Raises:
        UnknownNameError: no such file, dotted module, or class in it.
    """
    # A leading dot would be a relative import, which has no package to start from: it is an unknown name.
    if "." in name and not name.startswith("."):
        module_name = name
    elif name in available(kind):
        module_name = module_of(kind, name)
    else:
        raise UnknownNameError(known_names_hint(name, available(kind)))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownNameError(f"no module {module_name!r} can be imported ({error}).") from error
    found = getattr(module, KINDS[kind][1], None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UnknownNameError(f"module {module_name!r} has no dataclass {KINDS[kind][1]!r}.")
    # Set on the class itself: a subclass would be another class than the one that its module holds, so it could not
    # be pickled. Nothing is set on a class that derives from its contract, since that has the attribute already.
    for attribute, default in DEFAULTS.get(kind, {}).items():
        if not hasattr(found, attribute):
            setattr(found, attribute, default)
    return found


def option_faults(kind: str, name: str, options: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Check a strategy's options against its fields; return (option, value, message) for each fault."""
    strategy = load(kind, name)
    fields = {field.name: field for field in dataclasses.fields(strategy)}
    faults: list[tuple[str, Any, str]] = []
    for option, value in options.items():
        if option not in fields:
            own = f"{name!r} takes {', '.join(sorted(fields))}." if fields else f"{name!r} takes no options."
            faults.append((option, value, f"unknown option; {own}"))
    # Values are checked without the unknown options, so that one call reports both kinds of faults.
    known = {option: value for option, value in options.items() if option in fields}
    try:
        _adapter(strategy).validate_python(known)
    except pydantic.ValidationError as error:
        for detail in error.errors():
            option = str(detail["loc"][0]) if detail["loc"] else ""
            if detail["type"] == "missing":
                # A missing option has no value to point at; its field's metadata says what to write.
                field = fields[option]
                faults.append((option, None, f"required by {name!r}: {field.metadata.get('help', 'no default')}"))
            else:
                faults.append((option, known.get(option), detail["msg"].removeprefix("Value error, ")))
    return faults


def build(kind: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Build the strategy behind a name with its options, read as `option_faults` reads them: '5' as a number is 5."""
    strategy = load(kind, name)
    # Pydantic ignores options that a dataclass does not have, and the constructor does not convert those it
    # has. So the constructor refuses unknown ones first, then pydantic reads the values.
    written = strategy(**(options or {}))
    return _adapter(strategy).validate_python(dataclasses.asdict(written))
