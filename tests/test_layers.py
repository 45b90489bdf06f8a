"""A module imports only from lower layers or its own folder, and each big dependency has its owners."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import raysweep

PACKAGE = Path(raysweep.__file__).parent

# Lowest first; units in one row do not know each other. A unit is a folder or a module of the package.
LAYERS = (
    {"errors", "statistics", "wording"},
    {"disk", "environment", "expressions", "parameter", "registry", "spec", "yamlfile"},
    {"entries", "space"},
    {"spacefile", "checks"},
    {"jobfile", "strategy_effects"},
    {"jsonlines", "plan", "records"},
    {"halting", "stages"},
    {"objectives"},
    {"contracts"},
    {"archive", "decisions", "judged", "rungs", "stopping"},
    {"points"},
    {"lifecycle", "reports", "retries"},
    {"engine"},
    {"recorder"},
    {"plasticity"},
    {"pnn"},
    {"models", "tasks", "prune", "grow", "init", "samplers", "schedulers", "exits"},
    {"core"},
    {"exports"},
    {"findings"},
    {"experiments", "simulation"},
    {"analyses"},
    {"cluster"},
    {"api", "doctor", "listing"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
OWNERS = {
    "ray": {"cluster"},
    "optuna": {"samplers", "engine", "cluster"},
    "torch": {
        "models",
        "tasks",
        "plasticity",
        "pnn",
        "core",
        "init",
        "exports",
        "findings",
        "analyses",
        "experiments",
        "cluster",
        "doctor",
    },
    "transformers": {"models", "plasticity", "pnn", "core", "init", "exports", "findings", "cluster"},
    "datasets": {"models", "plasticity", "core", "init", "cluster"},
    "yaml": {"yamlfile"},
    "scipy": {"exits", "samplers", "statistics", "strategy_effects", "findings", "analyses"},
    "click": {"cli"},
}


@dataclass(frozen=True)
class Import:
    """One import statement that runs: by which file, of what, and whether already when the file is imported."""

    importer: Path
    imported: str
    at_import: bool


def test_the_package_keeps_its_layers() -> None:
    assert violations(PACKAGE) == []


def test_the_whole_package_is_looked_at() -> None:
    imports = set(imports_of(PACKAGE))
    assert Import(PACKAGE / "jobfile.py", "raysweep.space", True) in imports
    assert Import(PACKAGE / "models" / "gpt2.py", "transformers", False) in imports
    assert {entry.importer.parent.name for entry in imports} >= {"cluster", "core", "grow", "models", "plasticity"}


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        ("core/bad.py", "import ray", "core/bad.py: only cluster may import ray"),
        ("core/bad.py", "from ray.train import torch", "core/bad.py: only cluster may import ray"),
        ("core/bad.py", "def f():\n    import ray.tune as t", "core/bad.py: only cluster may import ray"),
        ("core/bad.py", "import importlib\nimportlib.import_module('ray')", "core/bad.py: only cluster may import ray"),
        ("core/bad.py", "__import__('optuna')", "core/bad.py: only cluster, engine, samplers may import optuna"),
        (
            "reports/bad.py",
            "import torch",
            "reports/bad.py: only analyses, cluster, core, doctor, experiments, exports, findings, init, models,",
        ),
        (
            "prune/bad.py",
            "from torch import nn",
            "prune/bad.py: only analyses, cluster, core, doctor, experiments, exports, findings, init, models,",
        ),
        ("plan.py", "try:\n    import transformers\nexcept ImportError:\n    pass", "plan.py: only cluster, core"),
        ("archive.py", "import yaml", "archive.py: only yamlfile may import yaml"),
        ("cli/bad.py", "import optuna", "cli/bad.py: only cluster, engine, samplers may import optuna"),
        ("plan.py", "from raysweep.core import phases", "plan.py: core is not below plan"),
        ("plan.py", "def f():\n    import raysweep.core.phases", "plan.py: core is not below plan"),
        ("plan.py", "from raysweep import archive", "plan.py: archive is not below plan"),
        ("plan.py", "import raysweep", "plan.py: __init__ is not below plan"),
        ("prune/bad.py", "from raysweep.grow.random import Grower", "prune/bad.py: grow is not below prune"),
        ("core/bad.py", "from raysweep.cluster.lane import Lane", "core/bad.py: cluster is not below core"),
        ("reports/bad.py", "from raysweep.plasticity.head_map import HeadMap", "plasticity is not below reports"),
        ("core/bad.py", "from . import phases", "core/bad.py: relative import"),
        ("novel/bad.py", "import json", "novel/bad.py: 'novel' has no place in LAYERS"),
        ("plan.py", "from raysweep.novel import thing", "plan.py: 'novel' has no place in LAYERS"),
        ("core/a.py", "import raysweep.core.b", "core/a.py and core/b.py import each other"),
    ],
)
def test_a_violating_import_is_found(tmp_path: Path, file: str, code: str, said: str) -> None:
    package = tiny_package(tmp_path, {file: code, "core/b.py": "import raysweep.core.a" if "core.b" in code else ""})
    [violation] = violations(package)
    assert said in violation


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("cluster/good.py", "import ray, optuna, torch"),
        (
            "contracts.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n    import raysweep.core",
        ),
        ("core/good.py", "from raysweep.core import b\nfrom raysweep import errors, plan\nimport torch"),
        ("core/good.py", "import raytracer, torchvision"),
        ("core/a.py", "def f():\n    import raysweep.core.b"),
    ],
)
def test_an_allowed_import_is_not_found(tmp_path: Path, file: str, code: str) -> None:
    package = tiny_package(tmp_path, {file: code, "core/b.py": "import raysweep.core.a" if file == "core/a.py" else ""})
    assert violations(package) == []


def tiny_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "raysweep"
    for file, code in ({"core/a.py": "", "errors.py": "", "plan.py": "import raysweep.errors"} | files).items():
        path = package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return package


def violations(package: Path) -> list[str]:
    """Return every broken rule of a package in words."""
    found = []
    rank = {unit: number for number, row in enumerate(LAYERS) for unit in row}
    units = {unit_of(package, file) for file in package.rglob("*.py")}
    for unit in sorted(units - rank.keys()):
        found.append(f"{_a_file_of(package, unit)}: {unit!r} has no place in LAYERS")
    for entry in imports_of(package):
        file, unit = entry.importer.relative_to(package).as_posix(), unit_of(package, entry.importer)
        root, *inner = entry.imported.split(".")
        if root == "":
            found.append(f"{file}: relative import")
        elif root == "raysweep":
            other = inner[0] if inner else "__init__"
            if other not in rank:
                found.append(f"{file}: {other!r} has no place in LAYERS")
            elif unit in rank and unit != other and rank[other] >= rank[unit]:
                found.append(f"{file}: {other} is not below {unit}")
        elif unit not in OWNERS.get(root, {unit}):
            found.append(f"{file}: only {', '.join(sorted(OWNERS[root]))} may import {root}")
    return found + list(circles(package))


def circles(package: Path) -> Iterator[str]:
    """Name one circle of modules that import each other while they are imported, if there is any."""
    graph: dict[str, set[str]] = {}
    for entry in imports_of(package):
        file = package.parent.joinpath(*entry.imported.split(".")).with_suffix(".py")
        if entry.at_import and file.is_file():
            name = entry.importer.relative_to(package).as_posix()
            graph.setdefault(name, set()).add(file.relative_to(package).as_posix())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"{' and '.join(sorted(set(error.args[1])))} import each other"


def imports_of(package: Path) -> Iterator[Import]:
    """Yield every import that can run, those inside functions too; what only a type checker reads is left out."""
    for file in sorted(package.rglob("*.py")):
        found = _imports_in(ast.parse(file.read_text(encoding="utf-8")), package, at_import=True)
        yield from (Import(file, name, at_import) for name, at_import in dict.fromkeys(found))


def _imports_in(node: ast.AST, package: Path, *, at_import: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, at_import) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((name, at_import) for name in _names_from(node, package))
    elif isinstance(node, ast.Call) and _imported_by_call(node):
        yield _imported_by_call(node), at_import
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = iter(node.orelse)
    inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in children:
        yield from _imports_in(child, package, at_import=inside)


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


def unit_of(package: Path, file: Path) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


def _a_file_of(package: Path, unit: str) -> str:
    file = next(path for path in sorted(package.rglob("*.py")) if unit_of(package, path) == unit)
    return file.relative_to(package).as_posix()
