"""Strategies outside raysweep: find their source and read their class without running either, and say which may run.

To import `a.b` runs the code of a and of a.b, so a check of a job never does. It walks the search path to the file, and
reads the class in it with Python's parser. Only what trains imports a module, and only one that is allowed.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from raysweep.errors import UsageError

VARIABLE = "RAYSWEEP_MODULES"
"""Environment variable with the modules and packages that may be imported, separated by commas. Workers inherit it."""
LARGEST = 1_000_000
"""Bytes of a source file that is read."""


class UnknownNameError(UsageError):
    """No strategy of the kind has this name."""


@dataclass(frozen=True, kw_only=True)
class SourceClass:
    """What the source of a module says of the class of a strategy."""

    options: tuple[str, ...] = ()
    """Names of its fields."""
    required: tuple[str, ...] = ()
    """Fields without a default."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Attributes that are written as plain values."""
    whole: bool = True
    """Whether its options are known: False where it is imported from elsewhere or inherits from another class."""


def is_outside(name: str) -> bool:
    """Return whether the name of a strategy is the dotted name of a module."""
    # A leading dot would make an import a relative one.
    return "." in name and not name.startswith(".")


def allow(modules: Sequence[str]) -> None:
    """Allow modules, and what lies inside them, to be imported by this process and the workers that it starts."""
    named = [*os.environ.get(VARIABLE, "").split(","), *modules]
    os.environ[VARIABLE] = ",".join(dict.fromkeys(name.strip() for name in named if name.strip()))


def is_allowed(module: str) -> bool:
    """Return whether a module may be imported: it, or a package around it, is among those that are allowed."""
    allowed = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    return any(name and f"{module}.".startswith(f"{name}.") for name in allowed)


def not_allowed(module: str) -> str:
    """Return what to say of a module that may not be imported."""
    package = module.partition(".")[0]
    return (
        f"would run the code of module {module!r}. If you trust it, allow it with --allow-module {package}, or with "
        f"{VARIABLE}={package} in the environment."
    )


def source_of(module: str) -> Path | None:
    """Return the source file of a module without importing anything; None for one that has no file.

    Raises:
        UnknownNameError: there is no such module.
    """
    if loaded := sys.modules.get(module):
        file = getattr(loaded, "__file__", None)
        return Path(file) if file else None
    first, *inner = module.split(".")
    try:
        # The finders of editable installs know top-level names alone, and looking for one imports nothing.
        spec = importlib.util.find_spec(first) if all(map(str.isidentifier, (first, *inner))) else None
        for part in inner:
            places = list(spec.submodule_search_locations or ()) if spec else []
            spec = PathFinder.find_spec(part, places)
    except (ImportError, ValueError, OSError) as error:
        raise UnknownNameError(f"no module {module!r} can be found ({error}).") from error
    if spec is None:
        raise UnknownNameError(f"no module {module!r} can be found; is the folder that holds it in PYTHONPATH?")
    return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None


def described(module: str, class_name: str) -> SourceClass:
    """Return what the source of a module says of one of its classes.

    Raises:
        UnknownNameError: there is no such module or no such dataclass in it, or its source cannot be read.
    """
    path = source_of(module)
    if path is None or path.suffix != ".py":
        raise UnknownNameError(f"module {module!r} has no Python source to read.")
    try:
        with path.open("rb") as file:
            tree = ast.parse(file.read(LARGEST))
    # Null bytes and deep nesting are no SyntaxError.
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise UnknownNameError(f"the source of module {module!r} cannot be read: {error}.") from error
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    if found and any("dataclass" in ast.unparse(decorator) for decorator in found[-1].decorator_list):
        return _read_class(found[-1])
    if not found and class_name in _names_bound(tree):
        return SourceClass(whole=False)
    raise UnknownNameError(f"module {module!r} has no dataclass {class_name!r}.")


def _read_class(node: ast.ClassDef) -> SourceClass:
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
    own = [each for each in fields if "ClassVar" not in ast.unparse(each.annotation)]
    names = {str(ast.unparse(each.target)): each.value for each in own}
    # The contracts of raysweep have no fields; another base may bring any.
    bases = [ast.unparse(base) for base in node.bases]
    return SourceClass(
        options=tuple(names),
        required=tuple(name for name, value in names.items() if not _has_default(value)),
        constants=dict(_constants(node)),
        whole=all(base in (node.name, f"contracts.{node.name}", f"raysweep.contracts.{node.name}") for base in bases),
    )


def _has_default(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field":
        return any(keyword.arg in ("default", "default_factory") for keyword in value.keywords)
    return value is not None


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for each in node.body:
        if not isinstance(each, ast.Assign | ast.AnnAssign) or each.value is None:
            continue
        for target in each.targets if isinstance(each, ast.Assign) else [each.target]:
            try:
                if isinstance(target, ast.Name):
                    yield target.id, ast.literal_eval(each.value)
            except ValueError:  # computed: only the module itself knows it
                continue


def _names_bound(tree: ast.Module) -> set[str]:
    """Return the names that a module binds by imports and assignments."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names
