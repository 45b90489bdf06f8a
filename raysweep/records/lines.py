"""What each file of lines in a sweep's folder holds: how a line of it becomes a record, and when it is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache, partial
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from raysweep.contracts import Report
from raysweep.errors import ArchiveError
from raysweep.records.schema import SCHEMA, PhaseRecord, Proposal, Retry, Session, TrialRecord

Record = TypeVar("Record")


@dataclass(frozen=True)
class Reopened:
    """A line of trials.jsonl that takes back the ending of a trial."""

    trial: int
    reopened: bool


@dataclass(frozen=True)
class Voided:
    """A line of reports.jsonl behind which what a trial reported so far counts no more."""

    trial: int
    void: bool


@dataclass(frozen=True)
class LaneGroup:
    """A line of lanes.jsonl: a worker group that was started."""

    lane: str
    group: str
    pids: list[int]


@dataclass(frozen=True)
class Exported:
    """A line of exports.jsonl: an exported model, its trial and the key of the phase that it was made from."""

    trial: int
    key: str
    out: str


STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")
"""Optuna's states of a trial, by their numbers in its journal."""
CREATE_STUDY, CREATE_TRIAL = 0, 4
"""The operations of Optuna's journal that make a study, and that add a trial: here always one that has ended."""


@dataclass(frozen=True)
class JournalEntry:
    """A line of study.journal, which Optuna writes: what the invariants look at."""

    op_code: int
    trial: int | None = None
    state: int = 0


def record_of(kind: Callable[..., Record], line: Any) -> Record:
    """Return the record in a line's JSON value.

    Raises:
        ValueError: the value is no object, or lacks a field, or a field holds what it never does.
        ArchiveError: it is a record of another schema.
    """
    if not isinstance(line, dict):
        raise ValueError(f"it holds {type(line).__name__}, not a record")
    _check_schema(kind, line)
    found = {}
    for name, (field, needed) in _fields(kind).items():
        if name not in line and needed:
            raise ValueError(f"field {name!r} is missing")
        if name in line:
            found[name] = _checked(name, line[name], field)
    # Other fields were added by a newer raysweep of the same schema, so they may be left out.
    return kind(**found)


def phase_line(line: Any) -> PhaseRecord:
    """Return what a line of phases.jsonl says: the outcome of a phase."""
    record = record_of(PhaseRecord, line)
    for name in ("curve", "evaluations", "trajectory", "events"):
        # What they hold besides depends on the phase; where in it they were measured does not.
        if any("step" not in point for point in getattr(record, name) or []):
            raise ValueError(f"field {name!r}: a point of it says no step")
    return record


def trial_line(line: Any) -> TrialRecord | Reopened:
    """Return what a line of trials.jsonl says: how a trial ended, or that it is open again."""
    if isinstance(line, dict) and "reopened" in line:
        return record_of(Reopened, line)
    return record_of(TrialRecord, line)


def report_line(line: Any) -> Report | Voided:
    """Return what a line of reports.jsonl says: a report to the stopping rule, or that earlier ones count no more."""
    if isinstance(line, dict) and "void" in line:
        return record_of(Voided, line)
    return record_of(Report, line)


def journal_line(line: Any) -> JournalEntry:
    """Return what a line of Optuna's journal says of a trial."""
    entry = record_of(JournalEntry, line)
    if entry.op_code != CREATE_TRIAL:
        return entry
    about = line.get("user_attrs", {})
    if not (isinstance(about, dict) and 0 <= entry.state < len(STATES)):
        raise ValueError("it is no trial of Optuna's")
    return record_of(JournalEntry, {**line, "trial": about.get("trial")})


def _reader(kind: Callable[..., Record]) -> Callable[[Any], Record]:
    return lambda line: record_of(kind, line)


READERS: Mapping[str, Callable[[Any], Any]] = {
    "plans.jsonl": _reader(Proposal),
    "phases.jsonl": phase_line,
    "trials.jsonl": trial_line,
    "reports.jsonl": report_line,
    "retries.jsonl": _reader(Retry),
    "sessions.jsonl": _reader(Session),
    "lanes.jsonl": _reader(LaneGroup),
    "exports.jsonl": _reader(Exported),
    "study.journal": journal_line,
}
"""Every file of lines in a sweep's folder, and what reads a line of it; see `record_of` for what it raises."""


def skimming(stop: str | None) -> Callable[[bytes], Any]:
    """Return what makes the JSON value of a phase record's line, without the field `stop` and those after it."""
    return json.loads if stop is None else partial(PhaseRecord.skim, stop=stop)


def _check_schema(kind: Any, line: Mapping[str, Any]) -> None:
    found = line.get("schema")
    # A number that is another one comes from another raysweep, and says so of all that it wrote: no damage to pass
    # over. Anything else in its place is.
    if "schema" in _fields(kind) and type(found) is int and found != SCHEMA:
        raise ArchiveError(f"record of schema {found}; this raysweep reads schema {SCHEMA}")
    if "schema" in _fields(kind) and found != SCHEMA:
        raise ValueError("field 'schema' is missing")


def _checked(name: str, value: Any, field: TypeAdapter[Any]) -> Any:
    try:
        return field.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"field {name!r}: {error.errors()[0]['msg']}") from None


@cache
def _fields(kind: Any) -> dict[str, tuple[TypeAdapter[Any], bool]]:
    """Return of each field of a record what checks it, and whether a line must have it."""
    hints, strict = get_type_hints(kind), ConfigDict(strict=True)
    return {
        item.name: (
            TypeAdapter(hints[item.name], config=strict),
            item.default is MISSING and item.default_factory is MISSING,
        )
        for item in fields(kind)
    }
