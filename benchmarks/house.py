"""Count what keeps the house in order: rooms, layers, circles of imports, long files and functions, comments.

python -m benchmarks.house

Counts, not times: they are exact, and the same on every machine.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reference import figure, write

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raysweep"
LONG_FILE, LONG_FUNCTION = 300, 40
DIRECTIVES = ("noqa", "type:", "fmt:")
"""Comments that speak to a tool."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of the package, counted."""

    lines: int
    functions: list[int]
    """Lines of each function."""
    code: int
    """Lines that hold code; docstrings are none."""
    comments: int
    """Lines that hold a comment for a reader, behind code or alone."""


def counted(path: Path) -> SourceFile:
    """Count one file."""
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    strings = [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    documented = {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    comments: set[int] = set()
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if not any(word in token.string for word in DIRECTIVES):
                comments.add(token.start[0])
        elif token.string.strip():
            code.update(range(token.start[0], token.end[0] + 1))
    return SourceFile(
        lines=len(text.splitlines()),
        functions=[(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions],
        code=len(code - documented),
        comments=len(comments),
    )


def in_circles(package: Path) -> int:
    """Return how many modules import themselves through others, in functions and for types included."""
    files = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {name: set(_imported(path, files.keys())) for name, path in files.items()}
    return sum(name in _reached(graph, name) for name in graph)


def _imported(path: Path, modules: Collection[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from a import b` imports the module a.b where there is one, else something that a holds.
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in within]
        yield from (name for name in names if name in modules)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return what a module imports, directly or through others."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def _layer_rows() -> int:
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    layers = values["LAYERS"]
    assert isinstance(layers, ast.Tuple)
    return len(layers.elts)


def main() -> None:
    files = [counted(path) for path in sorted(PACKAGE.rglob("*.py"))]
    top = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    rows: list[tuple[str, float, str, str]] = [
        ("things at the top of raysweep/", len(top), "<= 16", "57 before the move"),
        ("rows of the layer test", _layer_rows(), "<= 14", "27 before the move"),
        ("modules in circles of imports, types included", in_circles(PACKAGE), "= 0", "23 before the move"),
        (f"files longer than {LONG_FILE} lines", sum(one.lines > LONG_FILE for one in files), "= 0", "9 before"),
        (
            f"functions longer than {LONG_FUNCTION} lines",
            sum(lines > LONG_FUNCTION for one in files for lines in one.functions),
            "<= 3",
            "9 before",
        ),
        (
            "comment lines a hundred lines of code",
            round(100 * sum(one.comments for one in files) / sum(one.code for one in files), 2),
            ">= 8",
            "1 before, counted in this way",
        ),
        (
            "lines of the README",
            len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()),
            "<= 130",
            "267 before",
        ),
    ]
    write("house", [figure(name, [value], asked=asked, unit="", baseline=was) for name, value, asked, was in rows])


if __name__ == "__main__":
    main()
