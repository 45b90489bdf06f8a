"""Comparisons in a file, such as `cycle.learn.steps * 2 <= cycle.baseline.steps`.

Each side is made of numbers, dotted names, + - * / and parentheses; or it is one quoted text, compared by == or !=
(`cycle.prune.strategy != "random"`). Nothing is ever executed: Python's parser makes a tree of it, and only the nodes
listed here are accepted.
"""

from __future__ import annotations

import ast
import math
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Lookup = Callable[[str], Any]
"""Returns the value of a dotted name, or None where it has none; the `get` of a mapping will do."""

LONGEST = 500
"""Most characters of a rule: far more than one needs, and far fewer than make the parser run out of stack."""
TOLERANCE = 1e-9
"""Relative difference below which numbers count as equal: 0.1 * 3 equals 0.3."""
ARITHMETIC: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
COMPARISONS: dict[type[ast.AST], str] = {
    ast.LtE: "<=",
    ast.Lt: "<",
    ast.GtE: ">=",
    ast.Gt: ">",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


@dataclass(frozen=True, kw_only=True)
class ParsedComparison:
    """A parsed rule. Two rules are equal if their text is."""

    text: str
    names: frozenset[str]
    """Every dotted name in it."""
    # Nodes of a syntax tree are equal only to themselves, so they take no part in comparisons.
    sign: str = field(compare=False)
    left: ast.expr = field(compare=False, repr=False)
    right: ast.expr = field(compare=False, repr=False)

    def holds(self, lookup: Lookup) -> bool:
        """Return whether the rule is met.

        Raises:
            ValueError: a name has no value, or is text where a number is needed.
        """
        return self.violation(lookup) <= 0

    def violation(self, lookup: Lookup) -> float:
        """Return by how much the rule is missed: 0 or less where it is met.

        The amount is the difference of the two sides. It is `TOLERANCE` where a strict comparison meets equal sides, 1
        where a comparison of texts or a != of numbers fails, and infinite where a side is not a number, as after a
        division by zero.

        Raises:
            ValueError: as `holds`.
        """
        left, right = _value(self.left, lookup), _value(self.right, lookup)
        if isinstance(left, str) or isinstance(right, str):
            return self._miss_of_text(left, right)
        return _miss(self.sign, left, right)

    def _miss_of_text(self, left: str | float, right: str | float) -> float:
        if self.sign not in ("==", "!="):
            raise ValueError(f"{self.text!r}: text can only be compared by == or !=")
        return float((left == right) != (self.sign == "=="))


def parse(text: str) -> ParsedComparison:
    """Parse one rule.

    Raises:
        ValueError: it is not one comparison of the kind that the top of this file describes.
    """
    # YAML reads a rule such as `5` as a number, so the type is checked, too.
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a rule is text, such as 'a.b * 2 <= c.d'")
    # A rule that YAML folds over several lines is one rule.
    text = " ".join(text.split())
    # Before the parser sees it: deep nesting would exhaust its stack, which is no SyntaxError.
    if len(text) > LONGEST:
        raise ValueError(f"a rule has at most {LONGEST} characters")
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} cannot be read near character {error.offset}") from None
    if not isinstance(node, ast.Compare):
        raise ValueError(f"{text!r} compares nothing; write it with one of {' '.join(COMPARISONS.values())}")
    # Python reads `a < b < c` as one comparison; its violation would be two numbers.
    if len(node.ops) > 1:
        raise ValueError(f"{text!r} compares more than once; write two rules")
    sign = COMPARISONS.get(type(node.ops[0]))
    if sign is None:
        raise ValueError(f"{text!r} must compare by one of {' '.join(COMPARISONS.values())}")
    left, right = node.left, node.comparators[0]
    # This also walks both sides, so nothing that a rule may not contain gets past here.
    names = frozenset((*_names(left), *_names(right)))
    # `1 < 2` is the same at every point: a misspelt name in quotes would end here, too.
    if not names:
        raise ValueError(f"{text!r} names nothing that could change")
    # Found here where a side is a quoted text; where a name stands for text, only its value shows it: see `violation`.
    if sign not in ("==", "!=") and any(map(_is_text, (left, right))):
        raise ValueError(f"{text!r}: text can only be compared by == or !=")
    return ParsedComparison(text=text, names=names, sign=sign, left=left, right=right)


def _names(side: ast.expr) -> Iterator[str]:
    """Yield the dotted names in one side of a comparison.

    Raises:
        ValueError: the side contains something that is not allowed in a rule.
    """
    # A text may stand alone only: `"a" + b` is refused below, where a text is neither name nor number.
    if not _is_text(side):
        yield from _names_in_sum(side)


def _names_in_sum(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield from (*_names_in_sum(node.left), *_names_in_sum(node.right))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        yield from _names_in_sum(node.operand)
    elif name := _dotted(node):
        yield name
    elif not _is_number(node):
        raise ValueError(f"{ast.unparse(node)!r} has no place in a rule; use numbers, dotted names, + - * / and ( )")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_number(node: ast.expr) -> bool:
    value = node.value if isinstance(node, ast.Constant) else None
    # True and False are ints to Python. A whole number that no float can hold would raise an error later.
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= sys.float_info.max


def _dotted(node: ast.expr) -> str | None:
    """Return the dotted name that a node spells, or None where it is something else, such as `f().x`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (start := _dotted(node.value)):
        return f"{start}.{node.attr}"
    return None


def _value(node: ast.expr, lookup: Lookup) -> str | float:
    """Return the value of one side; not a number where its arithmetic has no result."""
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, str | int | float)  # `parse` lets no other constant pass
        return node.value if isinstance(node.value, str) else float(node.value)
    if isinstance(node, ast.BinOp):
        left, right = _number(node.left, lookup), _number(node.right, lookup)
        try:
            return ARITHMETIC[type(node.op)](left, right)
        except ArithmeticError:
            # A division by zero or an overflow makes the rule missed at this point, not an error of the file.
            return math.nan
    if isinstance(node, ast.UnaryOp):
        value = _number(node.operand, lookup)
        return -value if isinstance(node.op, ast.USub) else value
    name = _dotted(node)
    # `parse` has accepted nothing else.
    assert name is not None
    found = lookup(name)
    if not isinstance(found, str | int | float):
        raise ValueError(f"{name!r} is not a number or text")
    return found if isinstance(found, str) else float(found)


def _number(node: ast.expr, lookup: Lookup) -> float:
    value = _value(node, lookup)
    if isinstance(value, str):
        raise ValueError(f"{ast.unparse(node)!r} is the text {value!r}, not a number")
    return value


def _miss(sign: str, left: float, right: float) -> float:
    """Return by how much a comparison of numbers is missed, as `ParsedComparison.violation` does."""
    # No comparison with nan is ever true, so it would look like one that is met.
    if math.isnan(left) or math.isnan(right):
        return math.inf
    # The absolute tolerance only makes numbers equal to 0 that are too small to be told from it.
    close = math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=1e-300)
    difference = 0.0 if close else left - right
    if sign == "==":
        return abs(difference)
    if sign == "!=":
        return -abs(difference) if difference else 1.0
    # From here on the sign is one of <=, <, >=, >: a difference in the wrong direction is the amount.
    missed = difference if sign.startswith("<") else -difference
    return TOLERANCE if sign in ("<", ">") and missed == 0 else missed
