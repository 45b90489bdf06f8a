"""A module imports only from lower layers or its own room, and each big dependency has its owners."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import raysweep

PACKAGE = Path(raysweep.__file__).parent
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"

# Lowest first; rooms in one row do not know each other. A room is a folder or a module at the top of the package.
LAYERS = (
    {"errors"},
    {"job"},
    {"contracts"},
    {"records"},
    {"networks", "meta", "reports"},
    {"trial"},
    {"sweep"},
    {"science"},
    {"strategies", "cluster"},
    {"api"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
# Who may run an import of a big dependency: rooms, folders in a room, or files. Types alone may be named anywhere.
OWNERS = {
    "ray": {"cluster"},
    "optuna": {"strategies/samplers", "sweep", "cluster"},
    "torch": {"networks", "trial", "science", "cluster", "strategies/init"},
    "transformers": {"networks", "trial", "science", "cluster", "strategies/init"},
    "datasets": {"networks", "trial", "cluster"},
    "yaml": {"job/yamlfile.py", "job/yamlvalues.py"},
    "scipy": {"records", "meta", "science", "strategies/exits", "strategies/samplers"},
    "click": {"cli"},
}
# Which folders inside networks/ a folder there may import, besides itself.
NETWORKS = {
    "plasticity": set(),
    "pnn": {"plasticity"},
    "models": {"plasticity", "pnn"},
    "tasks": {"plasticity"},
}


@dataclass(frozen=True)
class Import:
    """One import statement: by which file, of what, and whether it runs or only names a type."""

    importer: Path
    imported: str
    runs: bool


def test_the_package_keeps_its_layers() -> None:
    assert violations(PACKAGE) == []


def test_the_whole_package_is_looked_at() -> None:
    imports = set(imports_of(PACKAGE))
    assert Import(PACKAGE / "job" / "jobfile.py", "raysweep.job.space", True) in imports
    assert Import(PACKAGE / "networks" / "models" / "gpt2.py", "transformers", True) in imports
    assert {entry.importer.relative_to(PACKAGE).parts[0] for entry in imports} >= {"cluster", "trial", "strategies"}
    assert any(not entry.runs for entry in imports)


def test_there_are_few_rooms() -> None:
    rooms = {room_of(PACKAGE, file) for file in PACKAGE.rglob("*.py")}
    assert rooms == set().union(*LAYERS)
    assert len(rooms) <= 16 and len(LAYERS) <= 14


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        ("trial/bad.py", "import ray", "trial/bad.py: only cluster may import ray"),
        ("trial/bad.py", "from ray.train import torch", "trial/bad.py: only cluster may import ray"),
        ("trial/bad.py", "def f():\n    import ray.tune as t", "trial/bad.py: only cluster may import ray"),
        ("trial/bad.py", "import importlib\nimportlib.import_module('ray')", "only cluster may import ray"),
        ("trial/bad.py", "__import__('optuna')", "only cluster, strategies/samplers, sweep may import optuna"),
        ("reports/bad.py", "import torch", "only cluster, networks, science, strategies/init, trial may import torch"),
        ("strategies/prune/bad.py", "from torch import nn", "only cluster, networks, science, strategies/init, trial"),
        ("strategies/samplers/bad.py", "import torch", "only cluster, networks, science, strategies/init, trial"),
        ("strategies/prune/bad.py", "import optuna", "only cluster, strategies/samplers, sweep may import optuna"),
        ("job/plan.py", "try:\n    import transformers\nexcept ImportError:\n    pass", "job/plan.py: only cluster,"),
        (
            "records/folder.py",
            "import yaml",
            "records/folder.py: only job/yamlfile.py, job/yamlvalues.py may import yaml",
        ),
        ("cli/bad.py", "import optuna", "cli/bad.py: only cluster, strategies/samplers, sweep may import optuna"),
        ("job/plan.py", "from raysweep.trial import phases", "job/plan.py: trial is not below job"),
        ("job/plan.py", "def f():\n    import raysweep.trial.phases", "job/plan.py: trial is not below job"),
        ("job/plan.py", f"{TYPES}    from raysweep.trial import a", "job/plan.py: trial is not below job"),
        ("job/plan.py", "from raysweep import records", "job/plan.py: records is not below job"),
        ("job/plan.py", "import raysweep", "job/plan.py: __init__ is not below job"),
        ("strategies/bad.py", "from raysweep.cluster.lane import Lane", "cluster is not below strategies"),
        ("trial/bad.py", "from raysweep.cluster.lane import Lane", "trial/bad.py: cluster is not below trial"),
        (
            "reports/bad.py",
            "from raysweep.networks.plasticity.head_map import HeadMap",
            "networks is not below reports",
        ),
        ("trial/bad.py", "from . import phases", "trial/bad.py: relative import"),
        ("novel/bad.py", "import json", "novel/bad.py: 'novel' has no place in LAYERS"),
        ("job/plan.py", "from raysweep.novel import thing", "job/plan.py: 'novel' has no place in LAYERS"),
        ("trial/a.py", "import raysweep.trial.b", "trial/a.py and trial/b.py import each other"),
        ("trial/a.py", "def f():\n    import raysweep.trial.b", "trial/a.py and trial/b.py import each other"),
        ("trial/a.py", f"{TYPES}    import raysweep.trial.b", "trial/a.py and trial/b.py import each other"),
        ("networks/models/bad.py", "import raysweep.networks.tasks.masked", "models may not import tasks"),
        (
            "networks/plasticity/bad.py",
            f"{TYPES}    import raysweep.networks.pnn.forms",
            "plasticity may not import pnn",
        ),
    ],
)
def test_a_violating_import_is_found(tmp_path: Path, file: str, code: str, said: str) -> None:
    package = tiny_package(tmp_path, {file: code, "trial/b.py": "import raysweep.trial.a" if "trial.b" in code else ""})
    [violation] = violations(package)
    assert said in violation


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("cluster/good.py", "import ray, optuna, torch"),
        ("contracts/data.py", f"{TYPES}    import torch\n    import optuna"),
        ("trial/good.py", "from raysweep.trial import b\nfrom raysweep import errors, job\nimport torch"),
        ("trial/good.py", "import raytracer, torchvision"),
        ("networks/models/good.py", "import raysweep.networks.pnn.forms, raysweep.networks.plasticity.sites"),
    ],
)
def test_an_allowed_import_is_not_found(tmp_path: Path, file: str, code: str) -> None:
    assert violations(tiny_package(tmp_path, {file: code})) == []


def tiny_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "raysweep"
    for file, code in ({"trial/a.py": "", "errors.py": "", "job/plan.py": "import raysweep.errors"} | files).items():
        path = package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return package


def violations(package: Path) -> list[str]:
    """Return every broken rule of a package in words."""
    rank = {room: number for number, row in enumerate(LAYERS) for room in row}
    rooms = {room_of(package, file): file for file in package.rglob("*.py")}
    found = [
        f"{rooms[room].relative_to(package).as_posix()}: {room!r} has no place in LAYERS"
        for room in sorted(rooms.keys() - rank.keys())
    ]
    for entry in imports_of(package):
        file, room = entry.importer.relative_to(package).as_posix(), room_of(package, entry.importer)
        root, *inner = entry.imported.split(".")
        if root == "":
            found.append(f"{file}: relative import")
        elif root == "raysweep":
            other = inner[0] if inner else "__init__"
            if other not in rank:
                found.append(f"{file}: {other!r} has no place in LAYERS")
            elif room in rank and room != other and rank[other] >= rank[room]:
                found.append(f"{file}: {other} is not below {room}")
            elif room == other == "networks":
                found.extend(_inside_networks(file, inner))
        elif entry.runs and root in OWNERS and not any(_lies_in(file, owner) for owner in OWNERS[root]):
            found.append(f"{file}: only {', '.join(sorted(OWNERS[root]))} may import {root}")
    return found + list(circles(package))


def _lies_in(file: str, place: str) -> bool:
    return file == place or file.startswith(f"{place}/")


def _inside_networks(file: str, imported: list[str]) -> Iterator[str]:
    """Yield the fault where one folder inside networks/ imports another that it should not know."""
    importer, other = file.split("/")[1], imported[1] if len(imported) > 1 else ""
    if importer in NETWORKS and other in NETWORKS and other not in {importer, *NETWORKS[importer]}:
        yield f"{file}: {importer} may not import {other}"


def circles(package: Path) -> Iterator[str]:
    """Name one circle of modules that import each other, in functions or for types alone included, if there is any."""
    graph: dict[str, set[str]] = {}
    for entry in imports_of(package):
        path = package.parent.joinpath(*entry.imported.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            name = entry.importer.relative_to(package).as_posix()
            graph.setdefault(name, set()).add(file.relative_to(package).as_posix())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"{' and '.join(sorted(set(error.args[1])))} import each other"


def imports_of(package: Path) -> Iterator[Import]:
    """Yield every import, those inside functions and those that only a type checker reads included."""
    for file in sorted(package.rglob("*.py")):
        found = _imports_in(ast.parse(file.read_text(encoding="utf-8")), package, runs=True)
        yield from (Import(file, name, runs) for name, runs in dict.fromkeys(found))


def _imports_in(node: ast.AST, package: Path, *, runs: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, runs) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((name, runs) for name in _names_from(node, package))
    elif isinstance(node, ast.Call) and _imported_by_call(node):
        yield _imported_by_call(node), runs
    for_types: list[ast.stmt] = []
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for_types = node.body
    for child in ast.iter_child_nodes(node):
        yield from _imports_in(child, package, runs=runs and child not in for_types)


def _names_from(node: ast.ImportFrom, package: Path) -> list[str]:
    """`from a import b` is an import of a.b where that is a module of the package, else of a."""
    if node.level:
        return [""]
    assert node.module is not None
    names = []
    for alias in node.names:
        inner = package.parent.joinpath(*node.module.split("."), alias.name)
        is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
        names.append(f"{node.module}.{alias.name}" if is_module or node.module == "raysweep" else node.module)
    return names


def _imported_by_call(node: ast.Call) -> str:
    if ast.unparse(node.func) not in ("__import__", "importlib.import_module", "import_module") or not node.args:
        return ""
    argument = node.args[0]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


def room_of(package: Path, file: Path) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")
