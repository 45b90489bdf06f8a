"""Compare trials: their objectives, by how much they miss each constraint, and which of them are best."""

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
"""Objectives by name; lower is better in each."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a completed trial."""

    objectives: dict[str, float]
    violations: dict[str, float]
    """By how much each constraint is missed; 0 or less where it is met."""
    halt: Halt | None
    """Why the trial ended before its last cycle; None where it did not."""


def names(search: SearchSpec | None) -> tuple[str, ...]:
    """Return the names of a sweep's objectives, in the job's order."""
    minimize = search.minimize if search else "loss"
    return (minimize,) if isinstance(minimize, str) else minimize


def outcome_of(search: SearchSpec | None, records: Sequence[PhaseRecord], halting: Mapping[str, Any]) -> Outcome:
    """Return the objectives and violations of a completed trial, measured in the phase that is its result.

    Args:
        records: of the trial's own phases, in order.
        halting: the halting rules of the trial's plan; see halting.py.
    """
    kept, halt = result(records, halting)
    return outcome_at(search, records, kept, halt)


def outcome_at(
    search: SearchSpec | None, records: Sequence[PhaseRecord], kept: PhaseRecord, halt: Halt | None = None
) -> Outcome:
    """Return what a completed trial is worth if one of its records, `kept`, is its result."""
    lookup = _lookup(kept, records)
    constraints = search.constraints if search else ()
    return Outcome(
        objectives={name: float(getattr(kept, name)) for name in names(search)},
        violations={text: expressions.parse(text).violation(lookup) for text in constraints},
        halt=halt,
    )


def feasible(violations: Mapping[str, float]) -> bool:
    """Return whether every constraint is met."""
    return all(amount <= 0 for amount in violations.values())


def front(candidates: Mapping[Candidate, Goals]) -> list[Candidate]:
    """Return the Pareto front, ordered by the objectives, the first one first.

    No other candidate is at least as low in every objective as one of the front, and lower in one.
    """
    order = _by_goals(candidates)
    # One objective needs no comparison of pairs. Equal candidates are all on the front.
    if order and len(order[0][1]) == 1:
        return [candidate for candidate, goals in order if goals == order[0][1]]
    found: list[tuple[Candidate, list[float]]] = []
    for candidate, goals in order:
        # In this order, whatever dominates a candidate comes before it. It is enough to compare with the front so far:
        # a candidate dominated by one that is itself dominated is also dominated by one on the front.
        if not any(_dominates(other, goals) for _, other in found):
            found.append((candidate, goals))
    return [candidate for candidate, _ in found]


def ranked(candidates: Mapping[Candidate, Goals]) -> list[Candidate]:
    """Return candidates from best to worst: by the objective, or with several objectives front after front."""
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
    # Not strict: of a record that was edited by hand, a check says that its objectives are not those of the job.
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=False))


def _lookup(kept: PhaseRecord, records: Sequence[PhaseRecord]) -> Callable[[str], float | None]:
    """Return a function that finds the number which a name in a constraint stands for.

    `loss` is that of the trial's result, `baseline.loss` that of its last phase of this kind.
    """
    # A later phase of the same kind replaces an earlier one.
    last = {record.phase: record for record in records}

    def find(name: str) -> float | None:
        kind, _, number = name.rpartition(".")
        value: float | None = getattr(last[kind] if kind else kept, number)
        return value

    return find
