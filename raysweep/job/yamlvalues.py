"""Make plain values of YAML text: the core types of YAML 1.2, within limits on size, depth and aliases.

PyYAML's own loaders follow YAML 1.1, which reads `1:30` as 90, `yes` as true and `010` as 8. They also build whatever a
text asks for: a few lines of aliases stand for billions of values. So only its parser is used, which yields one event
after the other, and the values are made here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import yaml

from raysweep.job.paths import copied

try:
    from yaml import CSafeLoader as _Parser  # ten times faster, and part of PyYAML's own wheels
except ImportError:
    from yaml import SafeLoader as _Parser  # type: ignore[assignment]

DEEPEST = 32
"""Most levels of nesting. A job has seven; whatever walks a value needs a few frames of Python's stack a level."""
MOST_VALUES = 10_000
"""Most values in a text, those that aliases repeat included. The largest job of raysweep has a few hundred."""
LONGEST_NUMBER = 100
"""Most characters of a number. Floats have 17 digits, seeds 16, and Python itself refuses whole numbers above 4,300."""

NULLS = ("", "~", "null", "Null", "NULL")
TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
WHOLE = re.compile(r"[-+]?[0-9]+")
PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
FRACTION = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
NANS = (".nan", ".NaN", ".NAN")


class UnreadableYamlError(ValueError):
    """A text is no YAML, breaks a limit, or says something that readers of YAML understand differently."""


@dataclass
class _Collection:
    """A list or mapping whose end has not been read yet."""

    content: list[Any] | dict[str, Any]
    anchor: str | None
    before: int
    """Values of the text before it."""
    height: int = 1
    """Levels of nesting in it, so far."""
    key: str | None = None
    """Of a mapping: the key whose value comes next; None where a key comes next."""


@dataclass
class _Values:
    """The values that the events so far have made."""

    document: Any = None
    documents: int = 0
    count: int = 0
    opened: list[_Collection] = field(default_factory=list)
    anchored: dict[str, tuple[Any, int, int]] = field(default_factory=dict)
    """Name of an anchor -> its value, the number of values in that, and the levels of nesting."""

    def take(self, event: yaml.Event) -> None:
        """Add what an event stands for."""
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise _refused(event, "a second document begins; a file holds one")
        elif isinstance(event, yaml.ScalarEvent):
            self._take_scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self._take_alias(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(event)

    def _take_scalar(self, event: yaml.ScalarEvent) -> None:
        self._grow(event, values=1)
        _without_tag(event)
        # A style is a quote or a sign of a block; plain text has none, and only plain text may be a number.
        value = event.value if event.style else _resolved(event)
        if event.anchor:
            self.anchored[event.anchor] = (value, 1, 0)
        self._put(event, value, height=0)

    def _take_alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor not in self.anchored:
            raise _refused(event, f"alias *{event.anchor} names no anchor before it that is complete")
        value, values, height = self.anchored[event.anchor]
        # Before the copy is made: that is where a text of nested aliases would take all memory.
        self._grow(event, values=values, height=height)
        self._put(event, copied(value), height=height)

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        self._grow(event, values=1, height=1)
        _without_tag(event)
        content: list[Any] | dict[str, Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        if self.opened and _awaits_key(self.opened[-1]):
            raise _refused(event, "a key is a list or mapping; write a text")
        self.opened.append(_Collection(content, event.anchor, self.count - 1))

    def _close(self, event: yaml.CollectionEndEvent) -> None:
        closed = self.opened.pop()
        if closed.anchor:
            self.anchored[closed.anchor] = (closed.content, self.count - closed.before, closed.height)
        self._put(event, closed.content, height=closed.height)

    def _put(self, event: yaml.Event, value: Any, height: int) -> None:
        """Add a value to the collection around it, as an entry, a key or what a key stands for."""
        if not self.opened:
            self.document = value
            return
        around = self.opened[-1]
        around.height = max(around.height, height + 1)
        if isinstance(around.content, list):
            around.content.append(value)
        elif around.key is None:
            around.key = _new_key(event, value, around.content)
        else:
            around.content[around.key] = value
            around.key = None

    def _grow(self, event: yaml.Event, *, values: int, height: int = 0) -> None:
        """Count values that are about to be made; refuse those beyond a limit."""
        self.count += values
        if self.count > MOST_VALUES:
            raise _refused(event, f"holds more than {MOST_VALUES:,} values, those that aliases repeat included")
        if len(self.opened) + height > DEEPEST:
            raise _refused(event, f"nests deeper than {DEEPEST} levels")


def read_values(text: str) -> Any:
    """Return the value of a YAML text: text, a number, true, false, null, or lists and mappings of these.

    Raises:
        UnreadableYamlError: it is no YAML, breaks a limit, has a key twice or a tag, or means different things to
            different readers of YAML.
    """
    values = _Values()
    try:
        for event in yaml.parse(text, Loader=_Parser):
            values.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UnreadableYamlError(f"not valid YAML: {place}{error.problem}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        # Characters that YAML has no place for, such as NUL, or halves of a character.
        raise UnreadableYamlError(f"not valid YAML: {' '.join(str(error).split())}") from None
    return values.document


def reads_as_text(text: str) -> bool:
    """Return whether a plain text is read as itself, by this reader."""
    return not (
        text in NULLS or text in TRUTHS or text in NANS
        or any(form.fullmatch(text) for form in (WHOLE, PREFIXED, FRACTION, INFINITE))
    )  # fmt: skip


def _resolved(event: yaml.ScalarEvent) -> Any:
    """Return the value of a plain text, by the core schema of YAML 1.2."""
    text: str = event.value
    if text in NULLS:
        return None
    if text in TRUTHS:
        return TRUTHS[text]
    # Most texts are no numbers: one look at their first character spares four patterns.
    if text[0] not in "-+.0123456789":
        return text
    if LEADING_ZERO.fullmatch(text):
        way = f"write {text.lstrip('-+0') or 0} without the zero, or '{text}' in quotes for text"
        raise _refused(event, f"{_shortened(text)} is octal to some readers of YAML and decimal to others; {way}")
    number = _number(text)
    if number is not None and len(text) > LONGEST_NUMBER:
        raise _refused(event, f"{_shortened(text)} is a number of more than {LONGEST_NUMBER} characters")
    return text if number is None else number


def _number(text: str) -> int | float | None:
    """Return the number that a text spells, or None; of one that is too long, any number."""
    if WHOLE.fullmatch(text) or PREFIXED.fullmatch(text):
        # Base 0 takes the prefixes; it is not tried on a text that Python itself would refuse for its length.
        return int(text, 0) if len(text) <= LONGEST_NUMBER else 0
    if FRACTION.fullmatch(text):
        return float(text)
    if INFINITE.fullmatch(text) or text in NANS:
        return float(text.replace(".", ""))
    return None


def _awaits_key(collection: _Collection) -> bool:
    return _is_mapping(collection.content) and collection.key is None


def _is_mapping(content: list[Any] | dict[str, Any]) -> TypeGuard[dict[str, Any]]:
    return isinstance(content, dict)


def _new_key(event: yaml.Event, key: Any, content: dict[str, Any]) -> str:
    """Return a key of a mapping after checking that it is a text that the mapping does not have yet."""
    if not isinstance(key, str):
        raise _refused(event, f"key {key!r} is no text; put it in quotes if it is meant")
    if key in content:
        # Plain YAML keeps the last one, and what the first one says would be lost without a word.
        raise _refused(event, f"key {_shortened(key)!r} is given twice")
    return key


def _without_tag(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
    # A tag asks for a type, or for an object of some library. What a setting may be, the job says.
    if event.tag is not None:
        raise _refused(event, f"tag {_shortened(event.tag)} has no place here; a plain value, or one in quotes, has")


def _refused(event: yaml.Event, message: str) -> UnreadableYamlError:
    mark = event.start_mark
    assert mark is not None  # the parser knows where each event begins
    return UnreadableYamlError(f"line {mark.line + 1}, column {mark.column + 1}: {message}")


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_NUMBER else f"{text[:20]}…"
