"""Hash the source code that can change what comes of a phase, so that another code gives other phase keys."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from raysweep.errors import UsageError
from raysweep.job import outside, registry
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


def read_again() -> None:
    """Forget what was read: in a long session, files may have changed since the last sweep."""
    _digests_of_rooms.cache_clear()
    _of_strategy.cache_clear()


def core() -> dict[str, str]:
    """Return path below raysweep/ -> digest, for each file that any phase may run besides its strategies."""
    return _digests_of_rooms()


@cache
def _digests_of_rooms() -> dict[str, str]:
    # Cached, because keys are made for thousands of trials.
    paths = [path.relative_to(PACKAGE).as_posix() for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
    inside = [path for path in paths if not path.startswith(tuple(f"{folder}/" for folder in OUTSIDE_PHASES))]
    return {path: digest((PACKAGE / path).read_bytes()) for path in sorted([*inside, *FILES])}


def of_phase(kind: str, params: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the strategies that one phase runs, by file."""
    named = [(strategy, params[key]) for strategy, key in IN_PHASES.get(kind, ()) if key in params]
    return of_strategies(named)


def of_strategies(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return file -> digest for some strategies, (kind, name) each.

    A strategy of raysweep brings along those that its file imports. One outside raysweep is its module alone: what
    that imports is not followed.
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
    """Return the source of a module outside raysweep; a module that was made at run time has none.

    Raises:
        UnknownNameError: there is no such module here, or its source cannot be read.
    """
    try:
        file = outside.source_of(name)
        return file.read_bytes() if file else b""
    except (UsageError, OSError) as error:
        raise registry.UnknownNameError(f"the code of strategy {name!r} cannot be read here: {error}.") from error


def _strategies_imported(source: bytes) -> list[str]:
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raysweep.strategies"):
            # `from a import b` names a module or something in one; what is no file is passed over.
            imported += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return imported


@cache
def digest(source: bytes) -> str:
    """Return a short hash of Python code without its comments, docstrings and blank lines; of other bytes as they are.

    Those change no outcome, and a sweep need not be refused for them. What is hashed is the text itself, not a parsed
    form of it, since that differs from one version of Python to the next.
    """
    # Cached, because all files together take half a second, and most stay as they are when they are read again.
    try:
        text = _statements(source)
    except (SyntaxError, UnicodeError, tokenize.TokenError):  # an extension module, for example
        return hashlib.sha256(source).hexdigest()[:16]
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _statements(source: bytes) -> str:
    tokens = [token for token in tokenize.tokenize(io.BytesIO(source).readline) if token.type != tokenize.NL]
    # tokenize counts lines by line feeds alone; the first token says how the source is encoded.
    lines = source.decode(tokens[0].string).split("\n")
    gone = [token for token in tokens if token.type == tokenize.COMMENT]
    code = [token for token in tokens if token.type != tokenize.COMMENT]
    for before, token, after in zip(code, code[1:], code[2:], strict=False):
        # A string that is a whole statement: a docstring, of a field too.
        if token.type == tokenize.STRING and before.type in _BREAKS and after.type == tokenize.NEWLINE:
            gone.append(token)
    within = _lines_that_end_in_strings(token for token in code if token not in gone)
    for token in sorted(gone, key=lambda token: token.start, reverse=True):  # from the end: earlier columns stay valid
        (first, left), (last, right) = token.start, token.end
        tail = lines[last - 1][right:]
        lines[first - 1 : last] = [lines[first - 1][:left], *[""] * (last - first)]
        lines[last - 1] += tail
    return "\n".join(
        line if number in within else line.rstrip()
        for number, line in enumerate(lines, start=1)
        if number in within or line.strip()
    )


def _lines_that_end_in_strings(tokens: Iterable[tokenize.TokenInfo]) -> set[int]:
    """Return the numbers of lines whose end is part of a string: blanks and empty lines count there."""
    found: set[int] = set()
    opened: list[int] = []
    for token in tokens:
        name = tokenize.tok_name[token.type]  # Python 3.12 cuts an f-string into tokens, from a start to an end
        if name == "FSTRING_START":
            opened.append(token.start[0])
        first = opened.pop() if name == "FSTRING_END" else token.start[0]
        if name in ("STRING", "FSTRING_END"):
            found.update(range(first, token.end[0]))
    return found
