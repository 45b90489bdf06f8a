"""A search space: by dotted path into the job, the values that all trials share and those that the search chooses.

cycle.grow.init: split                                                          a plain value: fixed for all trials
cycle.prune.strategy: {choice: [taylor, entropy]}
cycle.prune.direction: {choice: [high, low], when: {cycle.prune.strategy: entropy}}
cycle.prune.level: {uniform: [0.1, 0.6], step: 0.05}
cycle.baseline.lr: {log_uniform: [1.0e-4, 1.0e-2], values: 5}
cycle.learn.lr: {log_uniform: [1.0e-5, 1.0e-3]}
cycle.learn.steps: {integer: [50, 300], step: 50}
require: [cycle.learn.steps * 2 <= cycle.baseline.steps]

Ranges of phases before learning are quantised by default, so that trials can share these phases; see entries.py.
Includes and groups of a file are resolved in spacefile.py.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysweep.errors import Fault, SpecError
from raysweep.job import bounds
from raysweep.job.entries import DEFAULT_VALUES, FORMS, is_scalar, parse_parameter
from raysweep.job.expressions import ParsedComparison, parse
from raysweep.job.parameter import EARLY, Condition, Parameter, Scalar
from raysweep.job.paths import get_path

Values = dict[str, Scalar]
"""A point of a space: the value of each parameter that exists there, by its path."""
Pick = Callable[[Parameter], Scalar]
REQUIRE = "require"
DRAWS = 1000
"""Points that are drawn at random in search of one that meets every rule."""
CORNER_DRAWS = 20 * DRAWS
"""Points that are drawn at random for all corners of a space together."""
MANY = 32
"""A range of an early phase with more values than this is hardly ever drawn twice alike."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The parameters, fixed values and rules of a search."""

    parameters: tuple[Parameter, ...]
    """Each stands after the parameters that its conditions name, so that a point can be drawn from front to back."""
    constants: Mapping[str, Scalar] = field(default_factory=dict)
    rules: tuple[ParsedComparison, ...] = ()
    source: str = "search space"
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The file of each entry that was included from elsewhere than `source`."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The space as it was written, with nothing left to include: a sweep stores it with its job."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all parameters; fixed values are not among them."""
        return tuple(parameter.path for parameter in self.parameters)

    def fault(self, path: str, message: str, value: Any = None) -> Fault:
        """Return a fault of the entry at a path."""
        return Fault(file=self.origins.get(path, self.source), key=path, value=value, message=message)

    def active(self, parameter: Parameter, values: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
        """Return whether a parameter exists, given the values drawn so far and the job for all other settings."""
        return all(
            condition.holds(self._look(condition.path, values, job, MISSING)) for condition in parameter.conditions
        )

    def missed(self, values: Mapping[str, Any], job: Mapping[str, Any]) -> list[ParsedComparison]:
        """Return the rules that a point breaks. A rule about a parameter that does not exist there does not apply.

        Raises:
            ValueError: a rule compares a text with a number.
        """

        def look(name: str) -> Any:
            return self._look(name, values, job, None)

        applying = (rule for rule in self.rules if all(look(name) is not None for name in rule.names))
        return [rule for rule in applying if not rule.holds(look)]

    def contains(self, values: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
        """Return whether values are a point of the space, whatever its rules say."""
        active = [parameter for parameter in self.parameters if self.active(parameter, values, job)]
        # A value of a parameter that does not exist there is as wrong as a missing one.
        return {parameter.path for parameter in active} == set(values) and all(
            parameter.has(values[parameter.path]) for parameter in active
        )

    def points(self, job: Mapping[str, Any]) -> Iterator[Values]:
        """Yield every point that meets the rules, the last parameter changing fastest.

        All parameters must be quantised.
        """
        yield from (values for values in self._points(job, 0, {}) if not self.missed(values, job))

    def draw(self, job: Mapping[str, Any], generator: random.Random) -> Values:
        """Draw one point at random; all points that meet the rules are equally likely.

        Raises:
            ValueError: none was found.
        """
        # Whole points are drawn anew: to change some values of one that misses a rule would favour some points.
        for _ in range(DRAWS):
            values = self.complete(job, lambda parameter: parameter.at(generator.random()))
            if not self.missed(values, job):
                return values
        raise ValueError(f"none of {DRAWS} random points meets every '{REQUIRE}'")

    def complete(self, job: Mapping[str, Any], pick: Pick) -> Values:
        """Return a point by picking a value for each parameter that exists there, in order."""
        values: Values = {}
        for parameter in self.parameters:
            if self.active(parameter, values, job):
                values[parameter.path] = pick(parameter)
        return values

    def corner_assignments(self, job: Mapping[str, Any]) -> Iterator[tuple[Parameter, Values]]:
        """Yield each parameter with a point at each of its corners, at which its conditions hold.

        The other parameters are at their first corner, or at random values where the rules are not met there. A corner
        at which no point was found that meets the rules is left out.
        """
        corners = sum(len(parameter.corners()) for parameter in self.parameters)
        draws = min(DRAWS, CORNER_DRAWS // max(corners, 1))
        for parameter in self.parameters:
            # Parents take the first value that makes the parameter exist; `parse_space` has checked that there is one.
            pinned = {parent.path: parent.meeting(conditions)[0] for parent, conditions in self.required(parameter)}
            for corner in parameter.corners():
                values = self._around({**pinned, parameter.path: corner}, job, draws)
                if values is not None:
                    yield parameter, values

    def required(self, parameter: Parameter) -> list[tuple[Parameter, list[Condition]]]:
        """Return the parameters that a parameter depends on, at any depth, each with all conditions on it."""
        by_path = {other.path: other for other in self.parameters}
        required: dict[str, list[Condition]] = defaultdict(list)
        waiting = [parameter]
        # Ends, because conditions form no circle. A setting of the job that a condition names is no parameter.
        while waiting:
            for condition in waiting.pop().conditions:
                if condition.path in by_path:
                    required[condition.path].append(condition)
                    waiting.append(by_path[condition.path])
        return [(by_path[path], conditions) for path, conditions in required.items()]

    def warnings(self, job: Mapping[str, Any]) -> list[str]:
        """Return sentences on parameters that keep trials from sharing phases, or were quantised so that they can."""
        # Without a learn phase after them, the early phases are all there is, and little is lost if none is shared.
        learns = isinstance(job.get("cycle"), Mapping) and job["cycle"].get("learn") is not None
        early = (parameter for parameter in self.parameters if parameter.path.startswith(EARLY))
        return [warning for parameter in early if learns and (warning := _warning_of(parameter))]

    def _look(self, path: str, values: Mapping[str, Any], job: Mapping[str, Any], missing: Any) -> Any:
        """Return the value of a path at a point; `missing` for a parameter that does not exist there."""
        if path in values:
            return values[path]
        # A parameter without a value does not exist at this point; the job's own value must not stand in for it.
        if path in self.paths:
            return missing
        return self.constants[path] if path in self.constants else get_path(job, path)

    def _points(self, job: Mapping[str, Any], at: int, values: Values) -> Iterator[Values]:
        """Yield every completion of the values of the first `at` parameters, rules aside."""
        if at == len(self.parameters):
            yield values
            return
        parameter = self.parameters[at]
        # Skipped and not enumerated: its values would all be the same point.
        if not self.active(parameter, values, job):
            yield from self._points(job, at + 1, values)
            return
        assert parameter.count is not None
        for index in range(parameter.count):
            yield from self._points(job, at + 1, {**values, parameter.path: parameter.value(index)})

    def _around(self, pinned: Values, job: Mapping[str, Any], draws: int) -> Values | None:
        """Return a point with some values given that meets the rules, or None where none was found."""
        # A generator of its own: whether a job is valid must not depend on what was drawn before.
        generator = random.Random(0)
        values = self.complete(job, lambda parameter: pinned.get(parameter.path, parameter.corners()[0]))
        for _ in range(draws):
            if not self.missed(values, job):
                return values
            values = self.complete(job, lambda parameter: pinned.get(parameter.path, parameter.at(generator.random())))
        return None


MISSING = object()
"""The value of a parameter that does not exist at a point. It meets no condition; None could be one of its values."""


def parse_space(raw: Mapping[str, Any], source: str, origins: Mapping[str, str] | None = None) -> Space:
    """Build a space from a mapping whose includes and groups are resolved; see spacefile.py.

    Args:
        source: the file to name in faults.
        origins: the file of each entry that stands elsewhere.

    Raises:
        SpecError: all malformed ranges, choices, conditions and rules.
    """
    # An empty space first: faults name the file of an entry, which it knows.
    space = Space(parameters=(), source=source, origins=origins or {}, raw=dict(raw))
    entries = {str(path): body for path, body in raw.items() if path != REQUIRE}
    constants = {path: body for path, body in entries.items() if body is not None and is_scalar(body)}
    searched = {path: body for path, body in entries.items() if path not in constants}
    parameters, faults = _parse_parameters(searched, space)
    rules, rule_faults = _parse_rules(raw.get(REQUIRE, []), space)
    faults += rule_faults
    if not parameters and not faults:
        faults.append(space.fault("", "holds no parameter; a search needs at least one."))
    # Order and reachability are only looked at where every entry could be read: a parameter that is missing would make
    # faults of those that depend on it.
    if not faults:
        parameters, cyclic = _in_order(parameters)
        faults += [space.fault(path, "its conditions form a circle.") for path in cyclic]
    space = Space(parameters=tuple(parameters), constants=constants, rules=tuple(rules), source=source,
                  origins=space.origins, raw=space.raw)  # fmt: skip
    if not faults:
        # A parent must meet all conditions of all parameters that the parameter depends on, at the same time.
        faults += [
            space.fault(parameter.path, f"can never exist: no value of {parent.path} ({parent.described()}) meets its "
                        "conditions.", raw.get(parameter.path))
            for parameter in parameters for parent, conditions in space.required(parameter)
            if not parent.meeting(conditions)
        ]  # fmt: skip
    if faults:
        raise SpecError(faults)
    return space


def _parse_parameters(entries: Mapping[str, Any], space: Space) -> tuple[list[Parameter], list[Fault]]:
    parameters, faults = [], []
    for path, body in entries.items():
        try:
            parameters.append(parse_parameter(path, _a_mapping(body)))
        except ValueError as error:
            faults.append(space.fault(path, f"{str(error).rstrip('.')}.", body))
    return parameters, faults


def _a_mapping(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise ValueError(f"must be a plain value, or one of {{{'|'.join(FORMS)}: [...]}}")
    return body


def _parse_rules(written: Any, space: Space) -> tuple[list[ParsedComparison], list[Fault]]:
    if not isinstance(written, list):
        return [], [space.fault(REQUIRE, "needs a list of rules, such as ['cycle.learn.steps <= 100'].", written)]
    if len(written) > bounds.RULES:
        return [], [space.fault(REQUIRE, f"holds {len(written):,} rules; a space has at most {bounds.RULES}.")]
    # All rules are read, so that a person sees all faults at once.
    rules, faults = [], []
    for rule in written:
        try:
            rules.append(parse(rule))
        except ValueError as error:
            faults.append(space.fault(REQUIRE, f"{str(error).rstrip('.')}.", rule))
    return rules, faults


def _warning_of(parameter: Parameter) -> str | None:
    """Return a warning if an early parameter prevents sharing, or a note that it was quantised to allow sharing."""
    path, count = parameter.path, parameter.count
    if parameter.by_default:
        return (
            f"{path} takes {DEFAULT_VALUES} values, {parameter.described()}, so that trials can share phases before "
            "learning. Set 'step:' or 'values:' for others, 'continuous: true' for all."
        )
    if count is None:
        return (
            f"{path} is continuous, so that no two trials share a phase that it determines. "
            "Give it a 'step:' or a number of 'values:'."
        )
    if parameter.form != "choice" and count > MANY:
        return f"{path} has {count} values, so that trials will hardly share a phase. Give it a larger 'step:'."
    return None


def _in_order(parameters: list[Parameter]) -> tuple[list[Parameter], list[str]]:
    """Order parameters so that conditions name earlier ones only; also return the paths of those in a circle."""
    waiting = list(parameters)
    ordered: list[Parameter] = []
    names = {parameter.path for parameter in parameters}
    while waiting:
        placed = {parameter.path for parameter in ordered}
        ready = [p for p in waiting if all(c.path in placed or c.path not in names for c in p.conditions)]
        # Whatever is left waits for another one that is left: a circle, or what depends on one.
        if not ready:
            return ordered, [parameter.path for parameter in waiting]
        # One at a time, so that parameters stay in the order of the file as far as their conditions allow.
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered, []
