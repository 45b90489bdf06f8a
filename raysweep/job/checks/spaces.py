"""Check that every point of a search space makes a valid job, and that its rules can be met."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from os.path import commonprefix
from typing import Any

from raysweep.errors import Fault, known_names_hint
from raysweep.job.checks.sections import STRATEGY_KEYS, TRIAL_SECTIONS, unknown_setting
from raysweep.job.outside import is_outside
from raysweep.job.paths import get_path
from raysweep.job.space import DRAWS, REQUIRE, Space, Values

UNKNOWN = "neither in this space nor set in the job"
OUTSIDE = f"is not part of a trial; a space may search under {', '.join(TRIAL_SECTIONS)}."
RANDOM_POINTS = 64
"""Random points at which a job is checked, beside all corners."""
FEWEST = DRAWS // 50
"""Of `DRAWS` random points at least so many must meet the rules, so that there is something to search among."""
TryValues = Callable[[Mapping[str, Any]], list[Fault]]


def space_faults(job: Mapping[str, Any], space: Space, try_values: TryValues) -> list[Fault]:
    """Check the job at every corner of the space and at random points: a fault here would fail a trial.

    Args:
        job: the resolved job.
        try_values: returns the faults of the job with the values of a point.
    """
    faults = [
        space.fault(f"{p.path}.when", f"{UNKNOWN}: {known_names_hint(c.path, space.paths)}")
        for p in space.parameters for c in p.conditions
        if c.path not in space.paths and get_path(job, c.path) is None
    ]  # fmt: skip
    faults += _rule_faults(space, job)
    # Where the rules are wrong or cannot be met, no point could be drawn below.
    if any(fault.key == REQUIRE for fault in faults):
        return faults
    # Parameters that `path_faults` names would make a fault at every point.
    wrong = {fault.key for fault in path_faults(space, job)}
    inside = tuple(p for p in space.parameters if p.path not in wrong)
    found: dict[tuple[str, str], Fault] = {}
    culprits: dict[str, str] = {}
    for values in _some_points(replace(space, parameters=inside), job):
        for fault in try_values(values):
            # Most points share their faults, so each is kept once. A fault of a setting that the space does not set
            # is put down to the parameter that causes it.
            key = fault.key
            if key not in space.paths:
                # Once for each setting: to find the culprit takes a check of the job for each value of the point.
                key = culprits.setdefault(key, culprits.get(key) or _culprit(fault, values, try_values))
            message = fault.message if key == fault.key else f"makes {fault.key}: {fault.message}"
            found.setdefault((key, message), space.fault(key, message, values.get(key, fault.value)))
    return [*faults, *found.values()]


def path_faults(space: Space, job: Mapping[str, Any]) -> list[Fault]:
    """Return a fault for each parameter whose path is no setting of a trial; `job` may be malformed."""
    faults = []
    named: dict[str, list[str]] = defaultdict(list)
    for _, kind, name in outside_strategies(job, space):
        named[kind].append(name)
    for parameter in space.parameters:
        if parameter.path.split(".")[0] not in TRIAL_SECTIONS:
            faults.append(space.fault(parameter.path, OUTSIDE))
        elif hint := unknown_setting(parameter.path, named):
            faults.append(space.fault(parameter.path, hint))
    return faults


def outside_strategies(job: Mapping[str, Any], space: Space | None) -> Iterator[tuple[str, str, str]]:
    """Yield key, kind and name of each strategy outside raysweep that a job, perhaps malformed, or its space names."""
    choices = {parameter.path: parameter.choices for parameter in space.parameters} if space else {}
    for section, named in STRATEGY_KEYS.items():
        # A model with a dot in its name is one of the hub, or a folder.
        for kind, name_key in named if section != "model" else ():
            key = f"{section}.{name_key}"
            names = (get_path(job, key), (space.constants.get(key) if space else None), *choices.get(key, ()))
            yield from ((key, kind, name) for name in dict.fromkeys(map(str, filter(None, names))) if is_outside(name))


def _some_points(space: Space, job: Mapping[str, Any]) -> list[Values]:
    """Return points at every corner, and random points."""
    # Always the same points: a job must not be valid today and invalid tomorrow.
    generator = random.Random(0)
    corners = [values for _, values in space.corner_assignments(job)]
    return corners + [space.draw(job, generator) for _ in range(RANDOM_POINTS)]


def _rule_faults(space: Space, job: Mapping[str, Any]) -> list[Fault]:
    """Check that rules name known settings, and that points meet them: each alone, and all together."""
    known = {*space.paths, *(path for path in _leaves(job) if path.split(".")[0] in TRIAL_SECTIONS)}
    unknown = [(rule, name) for rule in space.rules for name in sorted(rule.names) if name not in known]
    if unknown:
        return [
            space.fault(REQUIRE, f"{UNKNOWN}: {known_names_hint(name, known)}", rule.text) for rule, name in unknown
        ]
    generator, free = random.Random(0), replace(space, rules=())
    # Drawn without the rules, to see how many points meet them.
    points = [free.draw(job, generator) for _ in range(DRAWS)] if space.rules else []
    try:
        missed = [{rule.text for rule in space.missed(values, job)} for values in points]
    except ValueError as error:
        return [space.fault(REQUIRE, f"{error}.")]
    never = [rule.text for rule in space.rules if all(rule.text in at_point for at_point in missed)]
    if never:
        return [space.fault(REQUIRE, "no point of the space meets it.", rule) for rule in never]
    met = sum(not at_point for at_point in missed)
    if points and met < FEWEST:
        message = f"only {met} of {DRAWS} random points meet all of it, too few to search among; narrow the ranges."
        return [space.fault(REQUIRE, message)]
    return []


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Yield the dotted path of every setting of a job."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _culprit(fault: Fault, values: Mapping[str, Any], try_values: TryValues) -> str:
    """Return the path whose value alone causes a fault; where several are needed, the path most like the fault's."""
    for path, value in values.items():
        if fault.key in (other.key for other in try_values({path: value})):
            return path
    return max(values, key=lambda path: len(commonprefix([path, fault.key])))
