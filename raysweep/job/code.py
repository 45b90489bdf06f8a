"""Hash the source code that can change what comes of a phase, so that another code gives other phase keys."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import sys
import tokenize
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from raysweep.job import registry
from raysweep.job.checks.sections import STRATEGY_KEYS

PACKAGE = Path(__file__).resolve().parents[1]
ROOMS = ("contracts", "networks", "trial")
"""Rooms whose code runs inside phases."""
OUTSIDE_PHASES = ("trial/exports", "trial/forecast")
"""Folders in those rooms that only run before a trial or after it."""
FILES = ("job/plan.py", "records/halting.py")
"""Files of other rooms that decide on seeds and on which phase is a trial's result."""
IN_PHASES: Mapping[str, tuple[tuple[str, str], ...]] = {
    section.removeprefix("cycle."): named for section, named in STRATEGY_KEYS.items() if section.startswith("cycle.")
}
"""Kind of phase -> (kind of strategy, key of its name) of each strategy that runs in it."""
_BREAKS = (tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


@cache
def core() -> dict[str, str]:
    """Return path below raysweep/ -> digest, for each file that any phase may run besides its strategies."""
    paths = [path.relative_to(PACKAGE).as_posix() for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
    inside = [path for path in paths if not path.startswith(tuple(f"{folder}/" for folder in OUTSIDE_PHASES))]
    return {path: digest((PACKAGE / path).read_bytes()) for path in sorted([*inside, *FILES])}


def of_phase(kind: str, params: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the strategies that one phase runs, by file."""
    named = [(strategy, params[key]) for strategy, key in IN_PHASES.get(kind, ()) if key in params]
    return of_strategies(named)


def of_strategies(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return file -> digest for some strategies, (kind, name) each.

    A strategy of raysweep brings along those that its file imports; one outside raysweep is its module alone.
    """
    found: dict[str, str] = {}
    for kind, name in named:
        found |= _of_strategy(kind, name)
    return found


@cache
def _of_strategy(kind: str, name: str) -> dict[str, str]:
    if "." in name:
        return {name: digest(_source_outside(name))}
    found: dict[str, str] = {}
    waiting = [registry.module_of(kind, name)]
    while waiting:
        path = "/".join(waiting.pop().split(".")[1:]) + ".py"
        if path not in found and (PACKAGE / path).is_file():
            source = (PACKAGE / path).read_bytes()
            found[path] = digest(source)
            waiting += _strategies_imported(source)
    return found


def _source_outside(name: str) -> bytes:
    """Return the source of a module outside raysweep; a module that was made at run time has none."""
    # The job's checks have imported it, so that looking for it runs no code.
    module = sys.modules.get(name)
    spec = None if module else importlib.util.find_spec(name)
    if module is None and spec is None:
        raise registry.UnknownNameError(f"no module {name!r} can be found.")
    file = getattr(module, "__file__", None) if module else spec and spec.origin
    return Path(file).read_bytes() if file else b""


def _strategies_imported(source: bytes) -> list[str]:
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raysweep.strategies"):
            # `from a import b` names a module or something in one; what is no file is passed over.
            imported += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return imported


def digest(source: bytes) -> str:
    """Return a short hash of Python code without its comments, docstrings and blank lines.

    Those change no outcome, and a sweep need not be refused for them. What is hashed is the text itself, not a parsed
    form of it, since that differs from one version of Python to the next.
    """
    lines = source.decode("utf-8").splitlines()
    tokens = [token for token in tokenize.tokenize(io.BytesIO(source).readline) if token.type != tokenize.NL]
    without = [token for token in tokens if token.type != tokenize.COMMENT]
    gone = [token for token in tokens if token.type == tokenize.COMMENT]
    for before, token, after in zip(without, without[1:], without[2:], strict=False):
        # A string that is a whole statement: a docstring, of a field too.
        if token.type == tokenize.STRING and before.type in _BREAKS and after.type == tokenize.NEWLINE:
            gone.append(token)
    for token in sorted(gone, key=lambda token: token.start, reverse=True):  # from the end: earlier places stay valid
        (first, left), (last, right) = token.start, token.end
        lines[first - 1 : last] = [lines[first - 1][:left] + lines[last - 1][right:]]
    text = "\n".join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
