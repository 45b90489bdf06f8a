"""Parse the entries of a search space: a parameter with its values and its conditions.

A range of an early phase takes `DEFAULT_VALUES` values unless its entry says otherwise: `step:` or `values:` set the
distance of its values, and `continuous: true` takes all of them. Ranges of later phases are continuous by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raysweep.errors import known_names_hint
from raysweep.job import bounds
from raysweep.job.parameter import EARLY, Condition, Parameter, Scalar

FORMS = ("choice", "uniform", "log_uniform", "integer")
KEYS = (*FORMS, "step", "values", "continuous", "when")
CONDITION_FORMS = ("above", "below")
LARGEST = 1e30
"""Of the numbers of a range: as the largest bound of a setting (bounds.py), so that no difference overflows."""
DEFAULT_VALUES = 11
"""Values of an early range without `step`, `values` and `continuous`: both ends and nine between them."""


def parse_parameter(path: str, body: Mapping[str, Any]) -> Parameter:
    """Build a parameter from its entry in a file.

    Raises:
        ValueError: the entry is malformed.
    """
    # Unknown keys are named first: where a form is misspelt, "needs exactly one of" would not say which word is wrong.
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
    # Checked last: whatever the entry says of its values takes precedence.
    by_default = step is None and not continuous and path.startswith(EARLY)
    if by_default:
        step = _spacing(form, low, high, DEFAULT_VALUES)
    return Parameter(path=path, form=form, low=low, high=high, step=step, by_default=by_default, conditions=conditions)


def parse_conditions(path: str, when: Any) -> tuple[Condition, ...]:
    """Build the conditions of a parameter, `when: {path: value}`; all must hold.

    Raises:
        ValueError: they are malformed.
    """
    if not isinstance(when, Mapping):
        raise ValueError("when needs {path: value}")
    return tuple(_parse_condition(path, str(parent), wanted) for parent, wanted in when.items())


def _parse_condition(path: str, parent: str, wanted: Any) -> Condition:
    if parent == path:
        raise ValueError("its condition names itself")
    # One value is short for a list of one. An empty list falls through to the error, since nothing could meet it.
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
    # By repr, because 1, 1.0 and True are equal in Python but different choices.
    if len(set(map(repr, choices))) != len(choices):
        raise ValueError("a choice is given twice")
    return tuple(choices)


def _parse_ends(form: str, body: Mapping[str, Any]) -> tuple[float, float]:
    ends = body[form]
    if not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"{form} needs [low, high]")
    low, high = (_number(end) for end in ends)
    if low >= high:
        raise ValueError(f"low {low:g} must be below high {high:g}")
    # There is no logarithm of 0.
    if form == "log_uniform" and low <= 0:
        raise ValueError("log_uniform needs low > 0")
    if form == "integer" and (low != int(low) or high != int(high)):
        raise ValueError("integer needs whole numbers")
    return low, high


def _parse_step(form: str, body: Mapping[str, Any], low: float, high: float) -> float | None:
    """Return the step that an entry asks for, of the logarithm for log_uniform; None where it asks for none."""
    # `step: null` and `continuous: false` say the same as leaving them out.
    given = [key for key in ("step", "values", "continuous") if body.get(key) not in (None, False)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other")
    # A number of values would rarely divide the range into whole numbers.
    if form == "integer" and given not in ([], ["step"]):
        raise ValueError(f"integer takes no {given[0]}; it takes a step")
    if given == ["values"]:
        return _spacing(form, low, high, _parse_count(body["values"]))
    if body.get("step") is None:
        return 1.0 if form == "integer" else None
    step = _number(body["step"])
    # A constant difference between values is not what a logarithmic range is for.
    if form == "log_uniform":
        raise ValueError("log_uniform takes no step; give a number of values, or list them as a choice")
    if not 0 < step <= high - low:
        raise ValueError(f"step {step:g} must be above 0 and at most high - low")
    if (high - low) / step > bounds.PARAMETER_VALUES:
        raise ValueError(
            f"step {step:g} makes more than {bounds.PARAMETER_VALUES:,} values; say continuous: true, or a larger step"
        )
    # With tolerance: (0.6 - 0.2) / 0.1 is 3.9999999999999996 in floating point.
    if abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise ValueError(f"step {step:g} does not divide the range {low:g} to {high:g}")
    if form == "integer" and step != int(step):
        raise ValueError("integer needs whole numbers")
    return step


def _parse_count(count: Any) -> int:
    # True is an int to Python.
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= bounds.PARAMETER_VALUES:
        most = f"{bounds.PARAMETER_VALUES:,}"
        raise ValueError(f"values needs a whole number from 2 to {most}: how many, both ends included")
    return count


def _parse_continuous(body: Mapping[str, Any]) -> bool:
    # Not every truthy value: `continuous: "no"` would switch it on.
    continuous = body.get("continuous", False)
    if not isinstance(continuous, bool):
        raise ValueError("continuous is true or false")
    return continuous


def _spacing(form: str, low: float, high: float, values: int) -> float:
    """Return the step that divides a range into a number of values, both ends included."""
    return (math.log(high / low) if form == "log_uniform" else high - low) / (values - 1)


def _number(value: Any) -> float:
    # true and false are numbers to Python. A whole number that no float can hold is above every bound.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(f"{value!r} is not a finite number of at most {LARGEST:g}")
    return float(value)


def is_scalar(value: Any) -> bool:
    """Return whether a value is plain: text, a number, true, false or null."""
    return value is None or isinstance(value, str | int | float | bool)
