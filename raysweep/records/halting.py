"""The rules that end a trial of several cycles early, and the phase that is then its result."""

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
    """Why a trial ended after a cycle, and the phase that is its result."""

    rule: str
    cycle: int
    kept: str
    """Key of the phase that is the trial's result."""
    reason: str


def find_halt(records: Sequence[PhaseRecord], rules: Mapping[str, Any]) -> Halt | None:
    """Return why a trial halts after its last record, or None where it goes on.

    Args:
        records: of the trial's own phases so far, in order.
        rules: `regression` {ratio, margin} and `plateau` {patience, min_gain}, each of which may be missing; and
            `cycles`, the number of cycles that the trial has at most.
    """
    # Both rules are applied at the end of a cycle, its learn phase; a job without one cannot have these rules.
    if not records or records[-1].phase != "learn":
        return None
    ends = [record for record in records if record.phase in ENDS]
    # Regression first: its result is an earlier phase, while a plateau would keep the damaged one.
    return _regression(ends, rules.get("regression")) or _plateau(ends, rules)


def result(records: Sequence[PhaseRecord], rules: Mapping[str, Any]) -> tuple[PhaseRecord, Halt | None]:
    """Return the record that is a trial's result, and why the trial halted, or None where it did not."""
    halt = find_halt(records, rules)
    if halt is None:
        return records[-1], None
    return next(record for record in records if record.key == halt.kept), halt


def reached(arm: str, phases: Sequence[PhasePlan], cycle: int) -> list[PhasePlan]:
    """Return the phases of a control arm to run beside a trial whose result is that of `cycle`."""
    # This arm has one training for each cycle that a trial may end with, and only one of them has the trial's size.
    if arm == "from_scratch_small":
        return [phase for phase in phases if phase.cycle == cycle]
    return [phase for phase in phases if phase.cycle <= cycle]


def _regression(ends: Sequence[PhaseRecord], rule: Mapping[str, float] | None) -> Halt | None:
    """Halt where perplexity exceeds the best earlier one by the ratio and by the margin; keep the end before."""
    if rule is None or len(ends) < 2:
        return None
    # Compared with the best of all earlier ends, not with the one before: small losses would add up unnoticed.
    last, best = ends[-1], min(record.perplexity for record in ends[:-1])
    if not (last.perplexity > rule["ratio"] * best and last.perplexity > best + rule["margin"]):
        return None
    # Kept is the end just before, which need not be the best: it passed this rule itself one cycle ago.
    reason = (
        f"perplexity {last.perplexity:.4g} after cycle {last.cycle} is more than {rule['ratio']:g} x "
        f"and {rule['margin']:g} above the best before, {best:.4g}; the end before it is kept"
    )
    return Halt(rule="regression", cycle=last.cycle, kept=ends[-2].key, reason=reason)


def _plateau(ends: Sequence[PhaseRecord], rules: Mapping[str, Any]) -> Halt | None:
    """Halt where the last `patience` cycles lowered the best perplexity by less than `min_gain`; keep the last end."""
    rule = rules.get("plateau")
    # There must be an end before the last `patience` ones to compare with. After the last planned cycle the trial ends
    # anyway, and saying that a plateau ended it would be wrong.
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
