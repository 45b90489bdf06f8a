"""One dimension of a search space: a choice of plain values or a range of numbers, perhaps under a condition.

A range of an early phase (EARLY) is quantised even where its file says nothing of it: two trials share a phase only
if they agree on everything before it, and two draws from a continuous range never agree. `step:` or `values:` say how
fine; `continuous: true` says not at all, which is the rule for the ranges of later phases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raysweep.errors import known_names_hint

Scalar = str | int | float | bool | None

FORMS = ("choice", "uniform", "log_uniform", "integer")
KEYS = (*FORMS, "step", "values", "continuous", "when")
CONDITION_FORMS = ("above", "below")
EARLY = ("model.", "data.", "training.", "cycle.baseline.", "cycle.prune.", "cycle.measure.", "cycle.grow.")
"""Where the settings of all phases before learning stand."""
DEFAULT_VALUES = 11
"""Values of an early range that says neither `step`, `values` nor `continuous`: both ends and nine between them."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """When a parameter exists: another one has one of `among`, or lies strictly inside (above, below)."""

    path: str
    among: tuple[Scalar, ...] | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        if self.among is not None:
            return value in self.among
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A choice of scalars, or the numbers from `low` to `high`: all of them, or evenly spaced ones, ends included."""

    path: str
    form: Literal["choice", "uniform", "log_uniform", "integer"]
    choices: tuple[Scalar, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    """Distance between neighbouring values, in the logarithm for log_uniform."""
    by_default: bool = False
    """The step is ours, because the range is one of an early phase and says nothing."""
    conditions: tuple[Condition, ...] = ()

    @property
    def count(self) -> int | None:
        """How many values it has, None where it is continuous."""
        if self.form == "choice":
            return len(self.choices)
        return None if self.step is None else round(self._width / self.step) + 1

    @property
    def quantised(self) -> bool:
        """Whether two draws can be equal, so that phases which depend on it can be shared."""
        return self.count is not None

    @property
    def _width(self) -> float:
        return math.log(self.high / self.low) if self.form == "log_uniform" else self.high - self.low

    def value(self, index: int) -> Scalar:
        """Return one of the values of a quantised parameter, the lowest first."""
        if self.form == "choice":
            return self.choices[index]
        assert self.step is not None and self.count is not None
        if index in (0, self.count - 1):
            return self._typed(self.high if index else self.low)
        moved = index * self.step
        number = self.low * math.exp(moved) if self.form == "log_uniform" else self.low + moved
        return self._typed(float(f"{number:.12g}"))  # 0.30000000000000004 would be another phase than 0.3

    def at(self, share: float) -> Scalar:
        """Return the value at a share of the way through, in [0, 1): equal shares for all values of a quantised one."""
        if self.count is not None:
            return self.value(int(share * self.count))
        return (
            self.low * math.exp(share * self._width) if self.form == "log_uniform" else self.low + share * self._width
        )

    def share(self, value: float) -> float:
        """Return the share of the way through a range at which a value lies; `at` returns the value there."""
        if self.count is not None:
            return (self._index(value) + 0.5) / self.count
        return self._moved(value) / self._width

    def corners(self) -> tuple[Scalar, ...]:
        """Every choice; of a range both ends and a value inside, for settings that only take the ends."""
        if self.form == "choice":
            return self.choices
        inside = self.value(1) if self.quantised else self.nearest(self.low + (self.high - self.low) / math.pi)
        return tuple(dict.fromkeys((self.nearest(self.low), inside, self.nearest(self.high))))

    def nearest(self, value: float) -> float | int:
        """Return the value of the range that is nearest to a number."""
        value = min(max(value, self.low), self.high)
        return value if self.step is None else self.value(self._index(value))  # type: ignore[return-value]

    def has(self, value: Any) -> bool:
        """Return whether a value is one that it can take."""
        if self.form == "choice":
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices
            )
        return isinstance(value, int | float) and not isinstance(value, bool) and self.nearest(value) == value

    def meeting(self, conditions: Sequence[Condition]) -> list[Scalar]:
        """Return values under which all the conditions hold, corners first; without any, they never hold together."""
        tried = list(self.corners())
        if self.form != "choice":
            low = max([self.low, *(c.above for c in conditions if c.above is not None)])
            high = min([self.high, *(c.below for c in conditions if c.below is not None)])
            tried.append(self.nearest((low + high) / 2))
        if self.form != "choice" and self.quantised:
            named = (value for c in conditions for value in c.among or ())
            tried += [self.nearest(value) for value in named if isinstance(value, int | float)]
        return [value for value in tried if all(condition.holds(value) for condition in conditions)]

    def described(self) -> str:
        """Return its values in words."""
        if self.form == "choice":
            return ", ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}"

    def _index(self, value: float) -> int:
        assert self.step is not None and self.count is not None
        return min(max(round(self._moved(value) / self.step), 0), self.count - 1)

    def _moved(self, value: float) -> float:
        return math.log(value / self.low) if self.form == "log_uniform" else value - self.low

    def _typed(self, number: float) -> float | int:
        return int(number) if self.form == "integer" else number


def parse_parameter(path: str, body: Mapping[str, Any]) -> Parameter:
    """Build a parameter from what its file says.

    Raises:
        ValueError: what it says cannot be.
    """
    forms = [form for form in FORMS if form in body]
    unknown = [key for key in body if key not in KEYS]
    if unknown:
        raise ValueError(f"unknown key: {known_names_hint(unknown[0], KEYS)}")
    if len(forms) != 1:
        raise ValueError(f"needs exactly one of {', '.join(FORMS)}")
    form: Any = forms[0]
    conditions = parse_conditions(path, body.get("when", {}))
    if form == "choice":
        return Parameter(path=path, form=form, choices=_parse_choices(body), conditions=conditions)
    low, high = _parse_ends(form, body)
    continuous, step = _parse_continuous(body), _parse_step(form, body, low, high)
    by_default = step is None and not continuous and path.startswith(EARLY)
    if by_default:
        step = _spacing(form, low, high, DEFAULT_VALUES)
    return Parameter(path=path, form=form, low=low, high=high, step=step, by_default=by_default, conditions=conditions)


def parse_conditions(path: str, when: Any) -> tuple[Condition, ...]:
    """Build the conditions of a parameter.

    Raises:
        ValueError: they are malformed.
    """
    if not isinstance(when, Mapping):
        raise ValueError("when needs {path: value}")
    return tuple(_parse_condition(path, str(parent), wanted) for parent, wanted in when.items())


def _parse_condition(path: str, parent: str, wanted: Any) -> Condition:
    if parent == path:
        raise ValueError("its condition names itself")
    among = wanted if isinstance(wanted, list) else [wanted]
    if among and all(map(is_scalar, among)):
        return Condition(path=parent, among=tuple(among))
    if not isinstance(wanted, Mapping) or not wanted or any(key not in CONDITION_FORMS for key in wanted):
        raise ValueError("a condition is a value, a list of values, {above: x} or {below: x}")
    bounds = {key: _number(value) for key, value in wanted.items()}
    return Condition(path=parent, above=bounds.get("above"), below=bounds.get("below"))


def _parse_choices(body: Mapping[str, Any]) -> tuple[Scalar, ...]:
    choices = body["choice"]
    for key in ("step", "values", "continuous"):
        if key in body:
            raise ValueError(f"a choice takes no {key}")
    if not isinstance(choices, list) or not choices:
        raise ValueError("choice needs a non-empty list")
    if not all(map(is_scalar, choices)):
        raise ValueError("choices must be plain values: text, numbers, true, false or null")
    if len(set(map(repr, choices))) != len(choices):
        raise ValueError("a choice stands twice")
    return tuple(choices)


def _parse_ends(form: str, body: Mapping[str, Any]) -> tuple[float, float]:
    ends = body[form]
    if not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"{form} needs [low, high]")
    low, high = (_number(end) for end in ends)
    if low >= high:
        raise ValueError(f"low {low:g} must be below high {high:g}")
    if form == "log_uniform" and low <= 0:
        raise ValueError("log_uniform needs low > 0")
    if form == "integer" and (low != int(low) or high != int(high)):
        raise ValueError("integer needs whole numbers")
    return low, high


def _parse_step(form: str, body: Mapping[str, Any], low: float, high: float) -> float | None:
    """Return the distance between neighbouring values that a body asks for, in the logarithm for log_uniform."""
    given = [key for key in ("step", "values", "continuous") if body.get(key) not in (None, False)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other")
    if form == "integer" and given not in ([], ["step"]):
        raise ValueError(f"integer takes no {given[0]}; it takes a step")
    if given == ["values"]:
        return _spacing(form, low, high, _parse_count(body["values"]))
    if body.get("step") is None:
        return 1.0 if form == "integer" else None
    step = _number(body["step"])
    if form == "log_uniform":
        raise ValueError("log_uniform takes no step; say how many values, or list them as a choice instead")
    if not 0 < step <= high - low:
        raise ValueError(f"step {step:g} must be above 0 and at most high - low")
    if abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise ValueError(f"step {step:g} does not divide the range {low:g} to {high:g}")
    if form == "integer" and step != int(step):
        raise ValueError("integer needs whole numbers")
    return step


def _parse_count(count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ValueError("values needs a whole number of at least 2: how many, both ends included")
    return count


def _parse_continuous(body: Mapping[str, Any]) -> bool:
    continuous = body.get("continuous", False)
    if not isinstance(continuous, bool):
        raise ValueError("continuous is true or false")
    return continuous


def _spacing(form: str, low: float, high: float, values: int) -> float:
    return (math.log(high / low) if form == "log_uniform" else high - low) / (values - 1)


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # also '5e-5', a number in quotes
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no finite number")
    return number


def is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
