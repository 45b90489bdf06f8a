"""What a trial is judged by: its objectives, by how much it misses each constraint, and which trials are best. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raysweep.job import expressions
from raysweep.job.search import SearchSpec
from raysweep.records.halting import Halt, result
from raysweep.records.schema import PhaseRecord

Candidate = TypeVar("Candidate", bound=Hashable)
Goals = Mapping[str, float]
"""Objectives by name, all to be low."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a completed trial came to."""

    objectives: dict[str, float]
    violations: dict[str, float]
    """By how much each constraint is missed, at most 0 where it is kept."""
    halt: Halt | None
    """Why the trial ended before its last cycle."""


def names(search: SearchSpec | None) -> tuple[str, ...]:
    """Return what a sweep minimizes, the first objective first."""
    minimize = search.minimize if search else "loss"
    return (minimize,) if isinstance(minimize, str) else minimize


def judge(search: SearchSpec | None, records: Sequence[PhaseRecord], halting: Mapping[str, Any]) -> Outcome:
    """Judge a completed trial by the phase that is its result.

    Args:
        records: of the trial's own phases, in order.
        halting: rules of the trial's plan, see halting.py.
    """
    kept, halt = result(records, halting)
    lookup = _lookup(kept, records)
    constraints = search.constraints if search else ()
    return Outcome(
        objectives={name: float(getattr(kept, name)) for name in names(search)},
        violations={text: expressions.parse(text).violation(lookup) for text in constraints},
        halt=halt,
    )


def feasible(violations: Mapping[str, float]) -> bool:
    return all(amount <= 0 for amount in violations.values())


def front(candidates: Mapping[Candidate, Goals]) -> list[Candidate]:
    """Return those that no other one is better than: at least as low in every objective, and lower in one.

    Ordered by their objectives, the first objective first.
    """
    order = _by_goals(candidates)
    if order and len(order[0][1]) == 1:
        return [candidate for candidate, goals in order if goals == order[0][1]]
    found: list[tuple[Candidate, list[float]]] = []
    for candidate, goals in order:
        # What dominates a candidate comes before it here, and so does what dominates that.
        if not any(_dominates(other, goals) for _, other in found):
            found.append((candidate, goals))
    return [candidate for candidate, _ in found]


def ranked(candidates: Mapping[Candidate, Goals]) -> list[Candidate]:
    """Order by merit: by the objective; of several, the front comes first, then the front of the others, and so on."""
    if all(len(goals) == 1 for goals in candidates.values()):
        return [candidate for candidate, _ in _by_goals(candidates)]
    waiting, order = dict(candidates), []
    while waiting:
        best = front(waiting)
        order += best
        for candidate in best:
            del waiting[candidate]
    return order


def _by_goals(candidates: Mapping[Candidate, Goals]) -> list[tuple[Candidate, list[float]]]:
    entries = [(candidate, list(goals.values())) for candidate, goals in candidates.items()]
    return sorted(entries, key=lambda entry: entry[1])


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def _lookup(kept: PhaseRecord, records: Sequence[PhaseRecord]) -> Callable[[str], float | None]:
    """Return how to find what a constraint names: of the result, or of the trial's last phase of a kind."""
    last = {record.phase: record for record in records}

    def find(name: str) -> float | None:
        kind, _, number = name.rpartition(".")
        value: float | None = getattr(last[kind] if kind else kept, number)
        return value

    return find
