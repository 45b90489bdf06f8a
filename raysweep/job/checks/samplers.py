"""Check that a sampler can search the space and the objectives of a job."""

from __future__ import annotations

from collections.abc import Iterable

from raysweep.errors import Fault
from raysweep.job import registry
from raysweep.job.checks.sections import TRIAL_STRATEGIES
from raysweep.job.parameter import Parameter
from raysweep.job.search import SearchSpec
from raysweep.job.space import Space


def sampler_faults(search: SearchSpec, space: Space, source: str) -> Iterable[Fault]:
    """Yield a fault where the sampler lacks a feature that the search needs, naming the samplers that have all."""
    # Refused and never worked around: a sampler that quietly drew some parameters at random would not be the one that
    # the job names.
    asked = _asked_of_sampler(search, space)
    reason = next((asked[feature] for feature in _cannot(search.sampler.name) if feature in asked), None)
    if reason is not None:
        able = [name for name in registry.available("samplers") if not set(_cannot(name)) & set(asked)]
        message = f"cannot do this search: {reason}. These can: {', '.join(able)}."
        yield Fault(file=source, key="search.sampler.name", value=search.sampler.name, message=message)


def strategies_of(space: Space) -> list[Parameter]:
    """Return the parameters of a space that choose among at least two strategies."""
    return [one for one in space.parameters if one.path in TRIAL_STRATEGIES and len(one.choices) > 1]


def _cannot(sampler: str) -> tuple[str, ...]:
    """Return the features that a sampler lacks; a sampler that does not say has all of them."""
    return tuple(registry.attribute_of("samplers", sampler, "cannot") or ())


def _asked_of_sampler(search: SearchSpec, space: Space) -> dict[str, str]:
    """Return the features that a search needs and not every sampler has, each with the reason in words."""
    asked: dict[str, str] = {}
    for parameter in space.parameters:
        if parameter.form == "choice":
            # setdefault, so that the message names the first parameter that needs the feature.
            asked.setdefault("choice", f"{parameter.path} is a choice, not a range")
        if parameter.conditions:
            asked.setdefault("condition", f"{parameter.path} exists under a condition only")
        if not parameter.quantised:
            asked.setdefault("continuous", f"{parameter.path} is continuous; give it a step or a number of values")
    # A bandit over strategies has nothing to learn where there is one combination of them.
    if not strategies_of(space):
        asked["strategies"] = f"none of {', '.join(TRIAL_STRATEGIES)} has two choices in its space"
    if isinstance(search.minimize, tuple) and len(search.minimize) > 1:
        asked["objectives"] = f"search.minimize names {len(search.minimize)} objectives"
    if search.constraints:
        asked["constraints"] = "it cannot learn from search.constraints"
    return asked
