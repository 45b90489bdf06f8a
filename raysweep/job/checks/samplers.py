"""A sampler can do what a search asks of it: nothing is drawn in another way than the job says."""

from __future__ import annotations

from collections.abc import Iterable

from raysweep.errors import Fault
from raysweep.job import registry
from raysweep.job.checks.sections import TRIAL_STRATEGIES
from raysweep.job.parameter import Parameter
from raysweep.job.space import Space
from raysweep.job.spec import SearchSpec


def sampler_faults(search: SearchSpec, space: Space, source: str) -> Iterable[Fault]:
    """Check that the sampler can do what this search asks of it."""
    asked = _asked_of_sampler(search, space)
    reason = next((asked[feature] for feature in _cannot(search.sampler.name) if feature in asked), None)
    if reason is not None:
        able = [name for name in registry.available("samplers") if not set(_cannot(name)) & set(asked)]
        message = f"cannot do this search: {reason}. These can: {', '.join(able)}."
        yield Fault(file=source, key="search.sampler.name", value=search.sampler.name, message=message)


def strategies_of(space: Space) -> list[Parameter]:
    """Return what a space chooses among strategies, by two choices or more."""
    return [one for one in space.parameters if one.path in TRIAL_STRATEGIES and len(one.choices) > 1]


def _cannot(sampler: str) -> tuple[str, ...]:
    cannot: tuple[str, ...] = registry.load("samplers", sampler).cannot
    return cannot


def _asked_of_sampler(search: SearchSpec, space: Space) -> dict[str, str]:
    """Return what a search asks of its sampler that not every one can do, with the reason in words."""
    asked: dict[str, str] = {}
    for parameter in space.parameters:
        if parameter.form == "choice":
            asked.setdefault("choice", f"{parameter.path} is a choice, not a range")
        if parameter.conditions:
            asked.setdefault("condition", f"{parameter.path} exists under a condition only")
        if not parameter.quantised:
            asked.setdefault("continuous", f"{parameter.path} is continuous; give it a step or a number of values")
    if not strategies_of(space):
        asked["strategies"] = f"none of {', '.join(TRIAL_STRATEGIES)} has two choices in its space"
    if isinstance(search.minimize, tuple) and len(search.minimize) > 1:
        asked["objectives"] = f"search.minimize names {len(search.minimize)} objectives"
    if search.constraints:
        asked["constraints"] = "search.constraints would teach it nothing"
    return asked
