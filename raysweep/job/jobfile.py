"""Load a job file and check it whole: every fault at once, with file, key, value and the nearest known name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from raysweep.errors import Fault, SpecError
from raysweep.job.checks.rules import cross_faults
from raysweep.job.checks.samplers import sampler_faults
from raysweep.job.checks.sections import (
    STRATEGY_KEYS,
    TRIAL_SECTIONS,
    known_options,
    name_in,
    nearest_field,
    options_of,
    sentence,
)
from raysweep.job.checks.spaces import OUTSIDE, space_faults
from raysweep.job.checks.strategies import strategy_faults
from raysweep.job.paths import get_path, set_path
from raysweep.job.shipped import find
from raysweep.job.space import Space
from raysweep.job.spacefile import load_space
from raysweep.job.spec import JobSpec
from raysweep.job.yamlfile import load_mapping, parse_scalar

PATH_KEYS = ("model.name", "data.name", "data.tokenizer")
FORMS_OF_VALUES = ("str", "dict[str,any]", "one", "several")
"""What pydantic adds to a key that takes values of several forms."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked job: its spec, its space (None: a single trial) and the file it came from."""

    spec: JobSpec
    space: Space | None
    source: str
    overridden: frozenset[str] = frozenset()
    """Keys that were set beside the file."""

    @property
    def warnings(self) -> list[str]:
        """What its space does to the sharing of phases, a sentence each."""
        return self.space.warnings(self.spec.resolved()) if self.space else []

    def fault(self, key: str, value: Any, message: str) -> Fault:
        """Return a fault of a setting, in the file that it stands in."""
        if self.space and key in (*self.space.paths, *self.space.constants):
            return self.space.fault(key, message, value)
        return Fault(file="--set" if key in self.overridden else self.source, key=key, value=value, message=message)

    def with_values(self, values: Mapping[str, Any], seed: int | None = None) -> JobSpec:
        """Return the spec of one trial: the job with a point of the space, and the trial's seed, filled in.

        Args:
            seed: None: the job's own.

        Raises:
            SpecError: the values break a rule of the job.
        """
        spec = _parse_spec(apply_values(self.spec.resolved(), values), self.source)
        return spec if seed is None else spec.model_copy(update={"seed": seed})


def load_job(job: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """Load and check a job, a file or a mapping, with `key=value` overrides applied first.

    A file that is not here, such as `jobs/quickstart.yaml`, is looked for among those that raysweep ships.
    Names that are files or folders here become absolute: workers run elsewhere.

    Raises:
        SpecError: all faults of the job, of the overrides and of its search space.
    """
    if isinstance(job, Mapping):
        source, raw = "job", job
    else:
        file = find(job)
        source, raw = str(file), load_mapping(file)
    values, faults = parse_settings(overrides)
    raw = apply_values(raw, values)
    for path in PATH_KEYS:
        value = get_path(raw, path)
        if isinstance(value, str) and value and Path(value).exists():
            set_path(raw, path, str(Path(value).resolve()))
    try:
        checked = check_job(raw, source)
    except SpecError as error:
        for fault in error.faults:
            overridden = fault.file == source and fault.key in values
            faults.append(replace(fault, file="--set") if overridden else fault)
    else:
        searched = (*checked.space.paths, *checked.space.constants) if checked.space else ()
        faults += [
            Fault(file="--set", key=path, value=values[path], message="the space sets this; it would have no effect.")
            for path in searched if path in values
        ]  # fmt: skip
    if faults:
        raise SpecError(faults)
    return replace(checked, overridden=frozenset(values))


def parse_settings(overrides: Sequence[str]) -> tuple[dict[str, Any], list[Fault]]:
    """Read settings given as `key=value`; return those, and the faults of the others."""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if separator and key.strip():
            values[key.strip()] = parse_scalar(value)
        else:
            faults.append(Fault(file="--set", key=override, message="write it as key=value."))
    return values, faults


def check_job(raw: Mapping[str, Any], source: str) -> Job:
    """Check a job given as a mapping; `source` is the file named in faults.

    Raises:
        SpecError: all faults.
    """
    faults: list[Fault] = []
    spec, space = None, None
    try:
        space = _load_space(raw, source)
    except SpecError as error:
        faults += error.faults
    constants = space.constants if space else {}
    outside = [path for path in constants if path.split(".")[0] not in TRIAL_SECTIONS]
    try:
        spec = _parse_spec(
            apply_values(raw, {path: constants[path] for path in constants if path not in outside}), source
        )
    except SpecError as error:
        own = [space.fault(f.key, f.message, f.value) if space and f.key in constants else f for f in error.faults]
        faults = own + faults
    if space is not None:
        faults += [space.fault(path, OUTSIDE) for path in outside]
    if spec is not None and spec.search is not None and space is not None:
        job = spec.resolved()
        faults += space_faults(job, space, lambda values: _faults_of(apply_values(job, values), source))
        faults += sampler_faults(spec.search, space, source)
    if faults or spec is None:
        raise SpecError(faults)
    if spec.search is not None and space is not None:
        spec = spec.model_copy(update={"search": spec.search.model_copy(update={"space": dict(space.raw)})})
    return Job(spec=spec, space=space, source=source)


def apply_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a job's mapping with a value set at each dotted path.

    Where a value names another strategy, the options of the one it replaces are dropped: they belong to it.
    """
    changed = _copied(raw)
    for section, strategies in STRATEGY_KEYS.items():
        body = get_path(changed, section)
        if not isinstance(body, dict):
            continue
        names = {name_key: values.get(f"{section}.{name_key}") for _, name_key in strategies}
        stay = [(kind, key) for kind, key in strategies if names[key] in (None, name_in(section, key, body))]
        if len(stay) < len(strategies):
            kept = {option for kind, key in stay for option in known_options(kind, name_in(section, key, body))}
            for option in set(options_of(section, body)) - kept:
                del body[option]
    for path, value in values.items():
        set_path(changed, path, value)
    return changed


def _copied(value: Any) -> Any:
    """Copy mappings and lists at any depth; several times as fast as copy.deepcopy, and every trial needs it."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _parse_spec(raw: Mapping[str, Any], source: str) -> JobSpec:
    faults: list[Fault] = []
    spec = None
    try:
        spec = JobSpec.model_validate(raw)
    except pydantic.ValidationError as error:
        for detail in error.errors():
            fault = _to_fault(detail, source)
            if fault.key not in (other.key for other in faults):  # a setting of several types fails each of them
                faults.append(fault)
    faults += strategy_faults(raw, source)
    faults += cross_faults(raw, source)
    if faults or spec is None:
        raise SpecError(faults)
    return spec


def _to_fault(detail: Any, source: str) -> Fault:
    location = [str(part) for part in detail["loc"] if part not in FORMS_OF_VALUES]
    value = None if isinstance(detail["input"], dict) else detail["input"]
    message = sentence(detail["msg"].removeprefix("Value error, "))
    if detail["type"] == "extra_forbidden":
        message = f"unknown key: {nearest_field(location)}"
    elif detail["type"] == "missing":
        message = "required, but missing."
    elif detail["type"] == "model_type":
        message = "must be a mapping of keys to values."
    return Fault(file=source, key=".".join(location), value=value, message=message)


def _load_space(raw: Mapping[str, Any], source: str) -> Space | None:
    """Load the search space that the job holds or names; a file is looked for as `search.space` says."""
    given = get_path(raw, "search.space")
    return load_space(given, source) if isinstance(given, str | Mapping) else None


def _faults_of(raw: Mapping[str, Any], source: str) -> list[Fault]:
    try:
        _parse_spec(raw, source)
    except SpecError as error:
        return error.faults
    return []
