"""The sections of a job: which of them name strategies, and what their fields and options are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import pydantic

from raysweep.errors import Fault, known_names_hint
from raysweep.job import registry
from raysweep.job.spec import JobSpec

STRATEGY_KEYS = {
    # path of the section: (kind, key of the name) of each strategy that has its options there
    "model": (("models", "name"),),
    "cycle.prune": (("prune", "strategy"),),
    "cycle.grow": (("grow", "strategy"), ("init", "init")),
    "cycle.infer": (("exits", "exit"),),
    "search.sampler": (("samplers", "name"),),
    "search.stopping": (("schedulers", "name"),),
}
TRIAL_STRATEGIES = tuple(
    f"{section}.{key}" for section, named in STRATEGY_KEYS.items() if section.startswith("cycle.") for _, key in named
)
"""Paths of the strategies of a trial: pruning, growth, initialisation of new heads, and exit."""
Number = Callable[[str, int], int]
"""Returns a whole number of the job by its path, or a default where the job has none."""
ToFault = Callable[[str, Any, str], Fault]
"""Makes a fault of a key, a value and a message."""
TRIAL_SECTIONS = ("model", "data", "training", "cycle")
"""Sections in which trials of a sweep may differ; all others hold for the whole sweep."""


@lru_cache
def section_class(section: str) -> type[pydantic.BaseModel]:
    """Return the class of a section by its dotted path; the class of the whole job for an empty path."""
    found: type[pydantic.BaseModel] = JobSpec
    for part in section.split(".") if section else ():
        annotation = found.model_fields[part].annotation
        # An optional section is annotated as a union with None, whose arguments are the candidates.
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        found = next(c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel))
    return found


def nearest_field(location: Sequence[str]) -> str:
    """Return a hint for a key that its section does not have: the nearest field and all fields."""
    return known_names_hint(location[-1], section_class(".".join(location[:-1])).model_fields)


def options_of(section: str, body: Mapping[str, Any]) -> list[str]:
    """Return the keys of a section that are options of its strategies."""
    fields = section_class(section).model_fields
    return [key for key in body if key not in fields]


def name_in(section: str, name_key: str, body: Mapping[str, Any]) -> Any:
    """Return the name of a section's strategy, which may be the default."""
    return body.get(name_key, section_class(section).model_fields[name_key].default)


def file_of(kind: str, name: str) -> str | None:
    """Return the file of a strategy; for a model the file of its family, or None where it is pretrained."""
    return registry.scratch_sizes().get(name) if kind == "models" else name


def known_options(kind: str, name: Any) -> list[str]:
    """Return the names of a strategy's options; none where there is no such strategy."""
    # A name that does not exist is reported by strategies.py; whoever calls this goes on without its options.
    file = file_of(kind, name) if isinstance(name, str) else None
    try:
        return [] if file is None else list(registry.options_of(kind, file))
    except registry.UnknownNameError:
        return []


def unknown_setting(path: str, names: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str | None:
    """Return a hint where no job has a setting at a path, whatever its strategies; None where some job has one.

    Args:
        names: kind -> names of strategies outside raysweep, whose options count, too.
    """
    section, _, last = path.rpartition(".")
    try:
        fields = section_class(section).model_fields
    except (KeyError, StopIteration):
        return unknown_setting(section, names) or f"{section} is one setting, and holds no others."
    options = {
        option
        for kind, _ in STRATEGY_KEYS.get(section, ())
        for name in (*_written_names(kind), *names.get(kind, ()))
        for option in known_options(kind, name)
    }
    return None if last in (*fields, *options) else f"unknown key: {known_names_hint(last, (*fields, *options))}"


def _written_names(kind: str) -> Iterable[str]:
    """Return the names by which a job can choose the strategies of raysweep of a kind."""
    return registry.scratch_sizes() if kind == "models" else registry.available(kind)


def sentence(message: str) -> str:
    """Return a message as the end of a sentence that a fault begins: a small first letter, and one full stop."""
    return f"{message[0].lower()}{message[1:].rstrip('.')}."
