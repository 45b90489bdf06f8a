"""Import the modules outside raysweep that a job names, where the person who runs it allows that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from raysweep.errors import SpecError
from raysweep.job import registry
from raysweep.job.checks.sections import STRATEGY_KEYS
from raysweep.job.checks.spaces import outside_strategies
from raysweep.job.jobfile import Job, check_job
from raysweep.job.outside import is_allowed, is_outside, not_allowed


def with_modules(job: Job, points: Iterable[Mapping[str, Any]] = ()) -> Job:
    """Import the modules outside raysweep that a job names, and check the job again with what they hold.

    Only what trains calls this: to import a module runs it.

    Args:
        points: values of trials that may name strategies which neither the job nor its space does, as forks do.

    Raises:
        SpecError: a module is not allowed or cannot be imported, or an option is wrong.
    """
    named = dict.fromkeys([*outside_strategies(job.spec.resolved(), job.space), *_of_points(points)])
    faults = [job.fault(key, name, not_allowed(name)) for key, _, name in named if not is_allowed(name)]
    # Nothing is imported for a job that is refused anyway.
    if faults:
        raise SpecError(faults)
    for key, kind, name in named:
        try:
            registry.load(kind, name)
        except registry.UnknownNameError as error:
            faults.append(job.fault(key, name, str(error)))
    if faults:
        raise SpecError(faults)
    return replace(check_job(job.spec.resolved(), job.source), overridden=job.overridden) if named else job


def _of_points(points: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    kinds = {f"{section}.{key}": kind for section, named in STRATEGY_KEYS.items() for kind, key in named}
    for values in points:
        for path, name in values.items():
            if path in kinds and kinds[path] != "models" and isinstance(name, str) and is_outside(name):
                yield path, kinds[path], name
