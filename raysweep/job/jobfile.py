"""Load a job and check it whole: all faults at once, each with its file, key, value and the nearest known name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import exists  # unlike Path.exists, it takes any text: a name may be too long for a path
from pathlib import Path
from typing import Any

import pydantic

from raysweep.errors import Fault, SpecError
from raysweep.job.checks.rules import cross_faults
from raysweep.job.checks.rungs import rung_warnings
from raysweep.job.checks.samplers import sampler_faults
from raysweep.job.checks.sections import (
    STRATEGY_KEYS,
    TRIAL_SECTIONS,
    known_options,
    name_in,
    nearest_field,
    options_of,
)
from raysweep.job.checks.spaces import OUTSIDE, path_faults, space_faults
from raysweep.job.checks.strategies import strategy_faults
from raysweep.job.paths import DEEPEST, copied, get_path, set_path
from raysweep.job.section import words_of
from raysweep.job.shipped import find
from raysweep.job.space import Space
from raysweep.job.spacefile import load_space
from raysweep.job.spec import JobSpec
from raysweep.job.yamlfile import load_mapping, parse_scalar

PATH_KEYS = ("model.name", "data.name", "data.tokenizer")
"""Settings that name a file or folder here, or something on the hub."""
FORMS_OF_VALUES = ("str", "dict[str,any]", "one", "several")
"""Parts that pydantic adds to the key of a setting with several types, to say which of them it tried."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job with its search space."""

    spec: JobSpec
    space: Space | None
    """None for a single trial."""
    source: str
    """The file that it came from, for faults."""
    overridden: frozenset[str] = frozenset()
    """Keys that were set by --set and not in the file."""

    @property
    def warnings(self) -> list[str]:
        """Sentences on parameters of its space that keep trials from sharing phases."""
        found = self.space.warnings(self.spec.resolved()) if self.space else []
        return [*found, *rung_warnings(self.spec, self.space)]

    def fault(self, key: str, value: Any, message: str) -> Fault:
        """Return a fault of a setting, with the file in which it was set."""
        # A value of the space replaces that of the job, and --set that of the file: the last one to set it is named.
        if self.space and key in (*self.space.paths, *self.space.constants):
            return self.space.fault(key, message, value)
        return Fault(file="--set" if key in self.overridden else self.source, key=key, value=value, message=message)

    def with_values(self, values: Mapping[str, Any], seed: int | None = None) -> JobSpec:
        """Return the spec of one trial: the job with a point of the space and the trial's seed filled in.

        Args:
            seed: the trial's seed; None for the job's own.

        Raises:
            SpecError: the values break a rule of the job.
        """
        # Checked anew: a fork sets values outside the space, and random points may miss a rule that no corner does.
        spec = _parse_spec(apply_values(self.spec.resolved(), values), self.source)
        return spec if seed is None else spec.model_copy(update={"seed": seed})


def load_job(job: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """Load a job, apply overrides, and check it.

    Names that are files or folders here become absolute: workers run elsewhere.

    Args:
        job: a file, or the job as a mapping. A file that is not here, such as `jobs/quickstart.yaml`, is looked for
            among those that raysweep ships.
        overrides: settings as `key=value`.

    Raises:
        SpecError: all faults of the job, of the overrides and of its search space.
    """
    if isinstance(job, Mapping):
        source, raw = "job", job
    else:
        file = find(job)
        source, raw = str(file), load_mapping(file)
    values, faults = parse_settings(overrides)
    raw = _with_absolute_paths(apply_values(raw, values))
    try:
        checked = check_job(raw, source)
    except SpecError as error:
        # A fault of an overridden setting stands on the command line, not in the file.
        for fault in error.faults:
            overridden = fault.file == source and fault.key in values
            faults.append(replace(fault, file="--set") if overridden else fault)
    else:
        # The space gives these a value in every trial, so what --set says of them would be lost without a word.
        searched = (*checked.space.paths, *checked.space.constants) if checked.space else ()
        faults += [
            Fault(file="--set", key=path, value=values[path], message="the space sets this; it would have no effect.")
            for path in searched if path in values
        ]  # fmt: skip
    if faults:
        raise SpecError(faults)
    return replace(checked, overridden=frozenset(values))


def _with_absolute_paths(raw: dict[str, Any]) -> dict[str, Any]:
    # Workers run in other working folders. Anything that does not exist here may be a name on the hub.
    for path in PATH_KEYS:
        value = get_path(raw, path)
        if isinstance(value, str) and value and exists(value):
            set_path(raw, path, str(Path(value).resolve()))
    return raw


def read_job(raw: Mapping[str, Any], source: str) -> Job:
    """Read a job that was checked when it was written, such as that of a sweep, without checking it anew.

    No strategy is looked up and no rule between settings is applied: a sweep can be looked at where its strategies
    cannot be imported, were renamed, or break a rule that came later. Whatever starts or continues work calls
    `check_job`.

    Raises:
        SpecError: a setting is unknown to this raysweep or has another type, or the search space cannot be parsed.
    """
    spec, faults = _validated(raw, source)
    if spec is None:
        raise SpecError(faults)
    return Job(spec=spec, space=_load_space(raw, source), source=source)


def parse_settings(overrides: Sequence[str]) -> tuple[dict[str, Any], list[Fault]]:
    """Read settings of the form `key=value`; return their values by key, and a fault for each that cannot be read."""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if key.count(".") >= DEEPEST:
            faults.append(Fault(file="--set", key=key, message=f"has more than {DEEPEST} parts, which no setting has."))
        elif separator and key.strip():
            values[key.strip()] = parse_scalar(value)
        else:
            faults.append(Fault(file="--set", key=override, message="write it as key=value."))
    return values, faults


def check_job(raw: Mapping[str, Any], source: str) -> Job:
    """Check a job.

    Args:
        raw: the job as a mapping; its search space may be the name of a file.
        source: the file to name in faults.

    Raises:
        SpecError: all faults of the job and its search space.
    """
    faults: list[Fault] = []
    spec, space = None, None
    try:
        space = _load_space(raw, source)
    except SpecError as error:
        faults += error.faults
    # Fixed values of the space are part of every trial, so they are filled in before the job is checked.
    constants = space.constants if space else {}
    outside = [path for path in constants if path.split(".")[0] not in TRIAL_SECTIONS]
    try:
        inside = {path: value for path, value in constants.items() if path not in outside}
        spec = _parse_spec(apply_values(raw, inside), source)
    except SpecError as error:
        # A fault of a fixed value stands in the file of the space.
        own = [space.fault(f.key, f.message, f.value) if space and f.key in constants else f for f in error.faults]
        faults = own + faults
    if space is not None:
        faults += [space.fault(path, OUTSIDE) for path in outside]
        faults += path_faults(space, raw)
    if spec is not None and spec.search is not None and space is not None:
        # Only once the job itself is valid: otherwise each of its faults would appear again at every point.
        job = spec.resolved()
        faults += space_faults(job, space, lambda values: _faults_of(apply_values(job, values), source))
        faults += sampler_faults(spec.search, space, source)
    if faults or spec is None:
        raise SpecError(faults)
    if spec.search is not None and space is not None:
        # The space goes into the job: a sweep must not depend on a file that may change or be on another machine.
        spec = spec.model_copy(update={"search": spec.search.model_copy(update={"space": dict(space.raw)})})
    return Job(spec=spec, space=space, source=source)


def apply_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a job's mapping with a value set at each dotted path.

    Where a value names another strategy, the options of the replaced one are dropped, since they belong to it.
    """
    changed = copied(raw)
    for section, strategies in STRATEGY_KEYS.items():
        body = get_path(changed, section)
        if not isinstance(body, dict):
            continue
        # cycle.grow names two strategies, grow and init, and either may be replaced alone.
        names = {name_key: values.get(f"{section}.{name_key}") for _, name_key in strategies}
        stay = [(kind, key) for kind, key in strategies if names[key] in (None, name_in(section, key, body))]
        if len(stay) < len(strategies):
            # An option that a strategy which stays also knows is its own.
            kept = {option for kind, key in stay for option in known_options(kind, name_in(section, key, body))}
            for option in set(options_of(section, body)) - kept:
                del body[option]
    # Last, so that options of the new strategy are set after those of the old one are gone.
    for path, value in values.items():
        set_path(changed, path, value)
    return changed


def _parse_spec(raw: Mapping[str, Any], source: str) -> JobSpec:
    """Return the spec of a job after checking everything but its space.

    Raises:
        SpecError: all faults.
    """
    # The later checks read the mapping, not the spec: they also run where some settings are malformed, so that a person
    # sees all faults at once.
    spec, faults = _validated(raw, source)
    faults += strategy_faults(raw, source)
    faults += cross_faults(raw, source)
    if faults or spec is None:
        raise SpecError(faults)
    return spec


def _validated(raw: Mapping[str, Any], source: str) -> tuple[JobSpec | None, list[Fault]]:
    """Check the names and types of a job's settings; return its spec, or None and every fault."""
    try:
        return JobSpec.model_validate(raw), []
    except pydantic.ValidationError as error:
        faults: dict[str, Fault] = {}
        for detail in error.errors():
            fault = _to_fault(detail, source)
            # A setting that takes several types yields one error for each of them; the first stands for all.
            faults.setdefault(fault.key, fault)
        return None, list(faults.values())


def _to_fault(detail: Any, source: str) -> Fault:
    """Turn an error of pydantic into a fault in our words."""
    location = [str(part) for part in detail["loc"] if part not in FORMS_OF_VALUES]
    # A whole section as the value would fill the screen.
    value = None if isinstance(detail["input"], dict) else detail["input"]
    message = words_of(detail)
    if detail["type"] == "extra_forbidden":
        message = f"unknown key: {nearest_field(location)}"
    return Fault(file=source, key=".".join(location), value=value, message=message)


def _load_space(raw: Mapping[str, Any], source: str) -> Space | None:
    """Load the search space that a job contains or names; None where it has none."""
    given = get_path(raw, "search.space")
    # Anything else is a fault of the job, which pydantic finds.
    return load_space(given, source) if isinstance(given, str | Mapping) else None


def _faults_of(raw: Mapping[str, Any], source: str) -> list[Fault]:
    """Return the faults of a job, its space aside."""
    try:
        _parse_spec(raw, source)
    except SpecError as error:
        return error.faults
    return []
