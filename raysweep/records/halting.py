"""When a trial of several cycles should not go on, and which of its phases is then its result. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysweep.job.plan import PhasePlan
from raysweep.records.schema import PhaseRecord

ENDS = ("baseline", "learn")
"""Phases that end a cycle."""


@dataclass(frozen=True, kw_only=True)
class Halt:
    """Why a trial stopped after a cycle, and what it goes back to."""

    rule: str
    cycle: int
    kept: str
    """Key of the phase that is the trial's result."""
    reason: str


def verdict(records: Sequence[PhaseRecord], rules: Mapping[str, Any]) -> Halt | None:
    """Return whether a trial halts after its last record.

    Args:
        records: of the trial's own phases so far, in order.
        rules: `regression` {ratio, margin} and `plateau` {patience, min_gain}, each or none; and `cycles`, after the
            last of which a plateau ends nothing.
    """
    if not records or records[-1].phase != "learn":
        return None
    ends = [record for record in records if record.phase in ENDS]
    return _regression(ends, rules.get("regression")) or _plateau(ends, rules)


def result(records: Sequence[PhaseRecord], rules: Mapping[str, Any]) -> tuple[PhaseRecord, Halt | None]:
    """Return the record that counts as a trial's result, and why it halted if it did."""
    halt = verdict(records, rules)
    if halt is None:
        return records[-1], None
    return next(record for record in records if record.key == halt.kept), halt


def reached(arm: str, phases: Sequence[PhasePlan], cycle: int) -> list[PhasePlan]:
    """Return the phases of a control arm that match a trial whose result is that of `cycle`."""
    if arm == "from_scratch_small":  # one training for each cycle that a trial may end with
        return [phase for phase in phases if phase.cycle == cycle]
    return [phase for phase in phases if phase.cycle <= cycle]


def _regression(ends: Sequence[PhaseRecord], rule: Mapping[str, float] | None) -> Halt | None:
    """Halt where perplexity exceeds the best so far by the ratio and by the margin; keep the end before."""
    if rule is None or len(ends) < 2:
        return None
    last, best = ends[-1], min(record.perplexity for record in ends[:-1])
    if not (last.perplexity > rule["ratio"] * best and last.perplexity > best + rule["margin"]):
        return None
    reason = (
        f"perplexity {last.perplexity:.4g} after cycle {last.cycle} is more than {rule['ratio']:g} x "
        f"and {rule['margin']:g} above the best before, {best:.4g}; the end before it is kept"
    )
    return Halt(rule="regression", cycle=last.cycle, kept=ends[-2].key, reason=reason)


def _plateau(ends: Sequence[PhaseRecord], rules: Mapping[str, Any]) -> Halt | None:
    """Halt where the last `patience` cycles lowered the best perplexity by less than `min_gain` of it; keep the last.

    After the last of all cycles there is nothing to halt: the trial ends as planned.
    """
    rule = rules.get("plateau")
    if rule is None or len(ends) <= rule["patience"] or ends[-1].cycle >= rules["cycles"]:
        return None
    recent = int(rule["patience"])
    before = min(record.perplexity for record in ends[:-recent])
    lately = min(record.perplexity for record in ends[-recent:])
    if lately < before * (1 - rule["min_gain"]):
        return None
    reason = (
        f"the best perplexity fell by less than {rule['min_gain']:.2%} over the last cycles ({recent}); "
        f"the end of cycle {ends[-1].cycle} is kept"
    )
    return Halt(rule="plateau", cycle=ends[-1].cycle, kept=ends[-1].key, reason=reason)
