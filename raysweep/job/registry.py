"""Find the code behind a name in YAML: the folder is the registry, and a strategy's name is the name of its file.

A dotted name (`my_package.mine`) reaches a module outside raysweep: `load` imports it where that is allowed, and
`look` reads its source (outside.py). Every module of a kind holds one class with that
kind's fixed name, a frozen dataclass whose fields are its YAML options. Ours derive from their contract
(`class Pruner(contracts.Pruner)`), those outside need not.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pydantic

from raysweep.errors import known_names_hint
from raysweep.job import outside
from raysweep.job.outside import SourceClass, is_outside
from raysweep.job.outside import UnknownNameError as UnknownNameError
from raysweep.job.section import words_of

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
    "samplers": {
        "cannot": (), "whole": False, "ranks_stopped": False, "avoids_failures": False, "blind": False, "memory": None,
    },
}  # fmt: skip
"""What a strategy of a kind may leave out, with the value it then has."""


def available(kind: str) -> list[str]:
    """Return the names of one kind, sorted, without importing them."""
    # The folder's own `__init__` holds a docstring only, so this imports no strategy.
    folder = importlib.import_module(f"raysweep.{KINDS[kind][0]}")
    return list(_modules(tuple(folder.__path__)))


def module_of(kind: str, name: str) -> str:
    """Return the dotted name of the module of one of raysweep's strategies."""
    return f"raysweep.{KINDS[kind][0]}.{name}"


def first_line(kind: str, name: str) -> str:
    """Return the first line of a strategy's file, without importing it."""
    # Parsed and not imported: some files import torch, and a list of names should be there at once.
    spec = importlib.util.find_spec(module_of(kind, name))
    assert spec is not None and spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


@lru_cache
def _modules(path: tuple[str, ...]) -> list[str]:
    """Return the names of the modules in folders, sorted."""
    # Cached, because checking the trials of a sweep asks thousands of times, and files do not change meanwhile.
    return sorted(module.name for module in pkgutil.iter_modules(path))


@lru_cache
def scratch_sizes() -> dict[str, str]:
    """Return the model family of every from-scratch size."""
    return {size: family for family in available("models") for size in load("models", family).sizes}


@lru_cache
def adapter(strategy: Any) -> pydantic.TypeAdapter[Any]:
    """Return what checks and converts the options of a strategy, given its class."""
    return pydantic.TypeAdapter(strategy)


def load(kind: str, name: str) -> Any:
    """Return the class behind a name, with the defaults of its kind for what it leaves out.

    A module outside raysweep is imported, and so run: only what trains may call this for its name.

    Raises:
        UnknownNameError: no such file, dotted module, or class in it; or the module is not allowed.
    """
    # A name without a dot comes from the folder alone: `torch` must not import torch.
    if not is_outside(name):
        return _own(kind, name)
    if not outside.is_allowed(name):
        raise UnknownNameError(f"strategy {name!r} {outside.not_allowed(name)}")
    return _imported(kind, name)


def look(kind: str, name: str) -> Any:
    """Return the class behind a name; of a module outside raysweep that is not loaded, what its source says of it.

    Raises:
        UnknownNameError: no such file, dotted module, or class in it.
    """
    if not is_outside(name):
        return _own(kind, name)
    return _class_in(kind, name) if name in sys.modules else outside.described(name, KINDS[kind][1])


def options_of(kind: str, name: str) -> tuple[str, ...]:
    """Return the names of a strategy's options, as far as they are known without importing it.

    Raises:
        UnknownNameError: there is no such strategy.
    """
    found = look(kind, name)
    return found.options if isinstance(found, SourceClass) else tuple(found.__dataclass_fields__)


def knows_options(kind: str, name: str | None) -> bool:
    """Return whether all options of a strategy are known without importing it; a pretrained model, None, has none."""
    found = None if name is None else look(kind, name)
    return found.whole if isinstance(found, SourceClass) else True


def attribute_of(kind: str, name: str, attribute: str) -> Any:
    """Return an attribute of a strategy's class, None where it has none or only its module knows it.

    Raises:
        UnknownNameError: there is no such strategy.
    """
    found = look(kind, name)
    return found.constants.get(attribute) if isinstance(found, SourceClass) else getattr(found, attribute, None)


@cache
def _own(kind: str, name: str) -> Any:
    """Return the class of one of raysweep's strategies."""
    # Cached, because checking the trials of a sweep asks thousands of times. Modules outside raysweep are looked up
    # anew: where one cannot be imported now, it may be later.
    if name not in available(kind):
        raise UnknownNameError(known_names_hint(name, available(kind)))
    return _imported(kind, module_of(kind, name))


def _imported(kind: str, module_name: str) -> Any:
    """Return the class of a kind in a module, with the defaults of its kind for what it leaves out."""
    try:
        importlib.import_module(module_name)
    except ImportError as error:
        # Also where the module exists but something that it imports does not; the message then names that.
        raise UnknownNameError(f"no module {module_name!r} can be imported ({error}).") from error
    return _class_in(kind, module_name)


def _class_in(kind: str, module_name: str) -> Any:
    """Return the class of a kind in a loaded module, with the defaults of its kind for what it leaves out."""
    found = vars(sys.modules[module_name]).get(KINDS[kind][1])
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UnknownNameError(f"module {module_name!r} has no dataclass {KINDS[kind][1]!r}.")
    # Set on the class itself: a subclass would be another class than the one that its module holds, so it could not
    # be pickled. Nothing is set on a class that derives from its contract, since that has the attribute already.
    for attribute, default in DEFAULTS.get(kind, {}).items():
        if not hasattr(found, attribute):
            setattr(found, attribute, default)
    return found


def option_faults(kind: str, name: str, options: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Return a fault for each wrong option of a strategy: option, value and message."""
    strategy = look(kind, name)
    if isinstance(strategy, SourceClass):
        return _source_faults(name, strategy, options)
    fields = {field.name: field for field in dataclasses.fields(strategy)}
    faults: list[tuple[str, Any, str]] = []
    for option, value in options.items():
        if option not in fields:
            own = f"{name!r} takes {', '.join(sorted(fields))}." if fields else f"{name!r} takes no options."
            faults.append((option, value, f"unknown option; {own}"))
    # Unknown options were named above; pydantic would name them again, in other words.
    known = {option: value for option, value in options.items() if option in fields}
    try:
        _read(strategy, known)
    except pydantic.ValidationError as error:
        for detail in error.errors():
            # A check of several options together names none of them.
            option = str(detail["loc"][0]) if detail["loc"] else ""
            if detail["type"] == "missing":
                # A missing option has no value to point at; its field's metadata says what to write.
                field = fields[option]
                faults.append((option, None, f"required by {name!r}: {field.metadata.get('help', 'no default')}"))
            else:
                faults.append((option, known.get(option), words_of(detail)))
    return faults


def _source_faults(name: str, strategy: SourceClass, options: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Return the faults of options that the source of a class shows; their values are checked once it is imported."""
    if not strategy.whole:
        return []
    takes = f"takes {', '.join(sorted(strategy.options))}" if strategy.options else "takes no options"
    unknown = [(option, options[option], f"unknown option; {name!r} {takes}.") for option in options
               if option not in strategy.options]  # fmt: skip
    missing = [option for option in strategy.required if option not in options]
    return [*unknown, *((option, None, f"required by {name!r}: no default") for option in missing)]


def build(kind: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Return the strategy of a name with its options."""
    strategy = load(kind, name)
    # The class first, so that an option it does not have is an error; then pydantic, which turns a list into a tuple.
    written = strategy(**(options or {}))
    return _read(strategy, dataclasses.asdict(written))


def _read(strategy: Any, options: Mapping[str, Any]) -> Any:
    """Return a strategy with options that are checked strictly, as all settings of a job are.

    Raises:
        pydantic.ValidationError: an option has another type or value than its field.
    """
    # As JSON: pydantic takes no mapping for a dataclass, nor a list for a tuple, where it reads Python strictly.
    return adapter(strategy).validate_json(json.dumps(dict(options)), strict=True)
