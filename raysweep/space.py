"""A search space: named ranges and choices by dotted path into the job, some only under a condition.

cycle.prune.strategy: {choice: [taylor, entropy]}
cycle.prune.direction: {choice: [high, low], when: {cycle.prune.strategy: entropy}}
cycle.prune.level: {uniform: [0.1, 0.6], step: 0.05}
cycle.learn.lr: {log_uniform: [1.0e-5, 1.0e-3]}
training.batch_size: {integer: [8, 32], step: 8}
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raysweep.errors import Fault, SpecError, known_names_hint

Scalar = str | int | float | bool | None
Values = dict[str, Scalar]

FORMS = ("choice", "uniform", "log_uniform", "integer")
CONDITION_FORMS = ("above", "below")


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
    """One dimension: a choice of scalars, or a numeric range [low, high] with an optional step."""

    path: str
    form: Literal["choice", "uniform", "log_uniform", "integer"]
    choices: tuple[Scalar, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def quantised(self) -> bool:
        """Whether two draws can be equal, so that phases which depend on it can be shared."""
        return self.form == "choice" or self.grid is not None

    @property
    def grid(self) -> float | None:
        """Distance between neighbouring values of a range, None where it is continuous."""
        return self.step or (1.0 if self.form == "integer" else None)

    def corners(self) -> tuple[Scalar, ...]:
        """Every choice; of a range both ends and a value inside, for settings that only take the ends."""
        if self.form == "choice":
            return self.choices
        inside = self.low + (self.grid or (self.high - self.low) / math.pi)
        return tuple(dict.fromkeys(map(self.nearest, (self.low, inside, self.high))))

    def nearest(self, value: float) -> float | int:
        """Return the value of the range that is nearest to a number."""
        value = min(max(value, self.low), self.high)
        if self.grid is not None:
            value = round(self.low + round((value - self.low) / self.grid) * self.grid, 12)
        return int(value) if self.form == "integer" else value

    def meeting(self, conditions: Sequence[Condition]) -> list[Scalar]:
        """Return values under which all the conditions hold, corners first; without any, they never hold together."""
        tried = list(self.corners())
        if self.form != "choice":
            low = max([self.low, *(c.above for c in conditions if c.above is not None)])
            high = min([self.high, *(c.below for c in conditions if c.below is not None)])
            tried.append(self.nearest((low + high) / 2))
        if self.form != "choice" and self.grid is not None:
            named = (value for c in conditions for value in c.among or ())
            tried += [self.nearest(value) for value in named if isinstance(value, int | float)]
        return [value for value in tried if all(condition.holds(value) for condition in conditions)]


@dataclass(frozen=True, kw_only=True)
class Space:
    """All parameters, each after those that its conditions name."""

    parameters: tuple[Parameter, ...]
    source: str = "search space"
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def active(self, parameter: Parameter, values: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
        """Whether a parameter exists, given the values drawn so far and, for the rest, the job's own."""
        for condition in parameter.conditions:
            value = values[condition.path] if condition.path in values else get_path(job, condition.path)
            if condition.path in self.paths and condition.path not in values:
                return False  # the parameter it depends on does not exist either
            if not condition.holds(value):
                return False
        return True

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(parameter.path for parameter in self.parameters)

    def draw(self, job: Mapping[str, Any], generator: random.Random) -> Values:
        """Draw one assignment at random (for estimates; sweeps use an Optuna sampler)."""
        values: Values = {}
        for parameter in self.parameters:
            if self.active(parameter, values, job):
                values[parameter.path] = _draw(parameter, generator)
        return values

    def corner_assignments(self, job: Mapping[str, Any]) -> Iterator[tuple[Parameter, Values]]:
        """Yield assignments that visit every corner of every parameter, its conditions made true."""
        for parameter in self.parameters:
            pinned = {parent.path: parent.meeting(conditions)[0] for parent, conditions in self.required(parameter)}
            for corner in parameter.corners():
                yield parameter, self._complete({**pinned, parameter.path: corner}, job)

    def required(self, parameter: Parameter) -> list[tuple[Parameter, list[Condition]]]:
        """Return the parameters that a parameter hangs on, at any depth, each with all that must hold for it."""
        by_path = {other.path: other for other in self.parameters}
        required: dict[str, list[Condition]] = defaultdict(list)
        waiting = [parameter]
        while waiting:
            for condition in waiting.pop().conditions:
                if condition.path in by_path:
                    required[condition.path].append(condition)
                    waiting.append(by_path[condition.path])
        return [(by_path[path], conditions) for path, conditions in required.items()]

    def _complete(self, pinned: Values, job: Mapping[str, Any]) -> Values:
        values: Values = {}
        for parameter in self.parameters:
            if self.active(parameter, values, job):
                values[parameter.path] = pinned.get(parameter.path, parameter.corners()[0])
        return values


def _draw(parameter: Parameter, generator: random.Random) -> Scalar:
    if parameter.form == "choice":
        return generator.choice(parameter.choices)
    if parameter.grid is not None:
        steps = generator.randint(0, round((parameter.high - parameter.low) / parameter.grid))
        return parameter.nearest(parameter.low + steps * parameter.grid)
    if parameter.form == "log_uniform":
        return parameter.nearest(parameter.low * (parameter.high / parameter.low) ** generator.random())
    return generator.uniform(parameter.low, parameter.high)


def get_path(mapping: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, None where a part is missing."""
    value: Any = mapping
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def set_path(mapping: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path in place; parts on the way that are missing or null become mappings."""
    parts = path.split(".")
    for part in parts[:-1]:
        if not isinstance(mapping.get(part), dict):
            mapping[part] = {}
        mapping = mapping[part]
    mapping[parts[-1]] = value


def parse_space(raw: Mapping[str, Any], source: str) -> Space:
    """Build a Space from its mapping.

    Raises:
        SpecError: every malformed range, choice or condition at once.
    """
    faults: list[Fault] = []
    parameters: list[Parameter] = []
    for path, body in raw.items():
        try:
            parameters.append(_parse_parameter(str(path), body))
        except ValueError as error:
            faults.append(Fault(file=source, key=str(path), value=body, message=f"{str(error).rstrip('.')}."))
    if not raw:
        faults.append(Fault(file=source, key="", message="holds no parameter; a search needs at least one."))
    if not faults:
        parameters, cyclic = _in_order(parameters)
        faults += [Fault(file=source, key=path, message="its conditions form a circle.") for path in cyclic]
    space = Space(parameters=tuple(parameters), source=source, raw=dict(raw))
    if not faults:
        faults += [
            Fault(file=source, key=parameter.path, value=raw.get(parameter.path),
                  message=f"can never exist: no value of {parent.path} ({_range(parent)}) meets its conditions.")
            for parameter in parameters for parent, conditions in space.required(parameter)
            if not parent.meeting(conditions)
        ]  # fmt: skip
    if faults:
        raise SpecError(faults)
    return space


def _range(parameter: Parameter) -> str:
    named = map(str, parameter.choices)
    return ", ".join(named) if parameter.form == "choice" else f"{parameter.low:g} to {parameter.high:g}"


def _parse_parameter(path: str, body: Any) -> Parameter:
    if not isinstance(body, Mapping):
        raise ValueError(f"must be one of {{{'|'.join(FORMS)}: [...]}}")
    forms = [form for form in FORMS if form in body]
    unknown = [key for key in body if key not in (*FORMS, "step", "when")]
    if unknown:
        raise ValueError(f"unknown key: {known_names_hint(unknown[0], (*FORMS, 'step', 'when'))}")
    if len(forms) != 1:
        raise ValueError(f"needs exactly one of {', '.join(FORMS)}")
    form = forms[0]
    conditions = _parse_conditions(path, body.get("when", {}))
    if form == "choice":
        return Parameter(path=path, form="choice", choices=_parse_choices(body), conditions=conditions)
    low, high, step = _parse_range(form, body)
    return Parameter(path=path, form=form, low=low, high=high, step=step, conditions=conditions)  # type: ignore[arg-type]


def _parse_choices(body: Mapping[str, Any]) -> tuple[Scalar, ...]:
    choices = body["choice"]
    if "step" in body:
        raise ValueError("a choice takes no step")
    if not isinstance(choices, list) or not choices:
        raise ValueError("choice needs a non-empty list")
    if not all(_is_scalar(choice) for choice in choices):
        raise ValueError("choices must be plain values: text, numbers, true, false or null")
    if len(set(map(repr, choices))) != len(choices):
        raise ValueError("a choice stands twice")
    return tuple(choices)


def _parse_range(form: str, body: Mapping[str, Any]) -> tuple[float, float, float | None]:
    ends = body[form]
    if not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"{form} needs [low, high]")
    low, high = (_number(end) for end in ends)
    step = None if body.get("step") is None else _number(body["step"])
    if low >= high:
        raise ValueError(f"low {low:g} must be below high {high:g}")
    if form == "log_uniform" and low <= 0:
        raise ValueError("log_uniform needs low > 0")
    if form == "log_uniform" and step is not None:
        raise ValueError("log_uniform takes no step; list the values as a choice instead")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"step {step:g} must be above 0 and at most high - low")
    if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise ValueError(f"step {step:g} does not divide the range {low:g} to {high:g}")
    if form == "integer" and any(number != int(number) for number in (low, high, step or 1)):
        raise ValueError("integer needs whole numbers")
    return low, high, step


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # also '5e-5', a number in quotes
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no finite number")
    return number


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _parse_conditions(path: str, when: Any) -> tuple[Condition, ...]:
    if not isinstance(when, Mapping):
        raise ValueError("when needs {path: value}")
    return tuple(_parse_condition(path, str(parent), wanted) for parent, wanted in when.items())


def _parse_condition(path: str, parent: str, wanted: Any) -> Condition:
    if parent == path:
        raise ValueError("its condition names itself")
    among = wanted if isinstance(wanted, list) else [wanted]
    if among and all(map(_is_scalar, among)):
        return Condition(path=parent, among=tuple(among))
    if not isinstance(wanted, Mapping) or not wanted or any(key not in CONDITION_FORMS for key in wanted):
        raise ValueError("a condition is a value, a list of values, {above: x} or {below: x}")
    bounds = {key: _number(value) for key, value in wanted.items()}
    return Condition(path=parent, above=bounds.get("above"), below=bounds.get("below"))


def _in_order(parameters: list[Parameter]) -> tuple[list[Parameter], list[str]]:
    """Order parameters so that conditions look back only; also return those in a circle."""
    waiting = list(parameters)
    ordered: list[Parameter] = []
    names = {parameter.path for parameter in parameters}
    while waiting:
        placed = {parameter.path for parameter in ordered}
        ready = [p for p in waiting if all(c.path in placed or c.path not in names for c in p.conditions)]
        if not ready:
            return ordered, [parameter.path for parameter in waiting]
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered, []
