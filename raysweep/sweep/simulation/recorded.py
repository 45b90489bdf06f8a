"""Losses and times from the records of an earlier sweep: each simulated trial follows one of its trials.

A simulated phase has the recorded one's change of loss, stretched to its own number of steps, and the recorded time of
a step. Trials that share a phase follow the same recorded trial through it.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raysweep.errors import UsageError
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, PhasePlan, derived_seed, make_plan
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord
from raysweep.sweep.simulation.curves import SHAPE, Model


@dataclass(frozen=True, kw_only=True)
class _RecordedPhase:
    """First loss, change of the loss by share of the steps, and seconds per step."""

    kind: str
    cycle: int
    start: float
    """Loss before the first step."""
    shares: list[float]
    """Shares of the steps at which a loss is known, from 0 to 1."""
    changes: list[float]
    """By how much the loss differs from `start` at each of these."""
    seconds: float
    """Of a step; of the whole phase if it has none."""

    def change(self, share: float) -> float:
        """Return the change of the loss at a share of the steps, linear between those that are known."""
        # At share 1 bisect points behind the list: the last interval holds its own end.
        after = min(bisect_right(self.shares, share), len(self.shares) - 1)
        left, right = self.shares[after - 1], self.shares[after]
        low, high = self.changes[after - 1], self.changes[after]
        return low + (high - low) * (share - left) / (right - left)


class Recorded:
    """The curves of a sweep's complete trials.

    Args:
        job: the job that will be simulated.

    Raises:
        UsageError: no trial of the sweep is complete and has phases of all the kinds that the job's have.
    """

    def __init__(self, folder: SweepFolder, job: Job) -> None:
        kinds = _kinds(job)
        chains = [_chain(records) for records in _complete(folder)]
        self._trials = [chain for chain in chains if {phase.kind for phase in chain} >= set(kinds)]
        if not self._trials:
            raise UsageError(
                f"--from {folder.name}: the sweep has no complete trial with the phases {', '.join(kinds)} of the job; "
                "name another sweep, or leave --from out to simulate made-up curves."
            )

    def begin(self, phase: PhasePlan, before: Model | None) -> Model:
        if before is None:
            return Model(heads=HeadMap.full(*SHAPE), loss=self._phase(phase, None).start)
        # A shared baseline belongs to no recorded trial yet: trials part behind it, each with a source of its own.
        if before.source is None and phase.kind != "baseline":
            return replace(before, source=self._source(phase, None))
        return before

    def loss(self, phase: PhasePlan, before: Model, after: Model, share: float) -> float:
        return before.loss + self._phase(phase, before).change(share)

    def seconds(self, phase: PhasePlan, before: Model, flops: float) -> float:
        return self._phase(phase, before).seconds * max(1, phase.steps)

    def _source(self, phase: PhasePlan, before: Model | None) -> int:
        if before is not None and before.source is not None:
            return before.source
        # From the key and not from the trial, so that all trials that share the phase follow the same source.
        return derived_seed(phase.key, "source") % len(self._trials)

    def _phase(self, phase: PhasePlan, before: Model | None) -> _RecordedPhase:
        """Return the recorded phase of the same kind and cycle."""
        # A recorded trial may have fewer cycles, or have halted: then its last cycle before that one stands for it.
        same = [known for known in self._trials[self._source(phase, before)] if known.kind == phase.kind]
        return next((known for known in reversed(same) if known.cycle <= phase.cycle), same[0])


def _kinds(job: Job) -> list[str]:
    values = job.space.draw(job.spec.resolved(), random.Random(0)) if job.space else {}
    nowhere = Fingerprints(model="", data="")
    plan = make_plan(job.with_values(values), values, trial=1, fingerprints=nowhere)
    return list(dict.fromkeys(phase.kind for phase in plan.every_phase()))


def _complete(folder: SweepFolder) -> list[list[PhaseRecord]]:
    """Return the records of each complete trial's own phases."""
    # Of a reused phase only the record of the trial that ran it says how long it took.
    ran = {record.key: record for record in folder.phases() if not record.reused}
    trials = [trial for trial in folder.trials().values() if trial.status == "COMPLETE"]
    return [[ran[key] for key in trial.phases] for trial in trials if all(key in ran for key in trial.phases)]


def _chain(records: Sequence[PhaseRecord]) -> list[_RecordedPhase]:
    # A phase begins with the loss that the one before it ended with.
    starts = [None, *(record.loss for record in records)]
    return [_phase(record, start) for record, start in zip(records, starts, strict=False)]


def _phase(record: PhaseRecord, start: float | None) -> _RecordedPhase:
    points = [point for point in record.evaluations or record.curve if point["step"] < record.steps]
    # A new model was not measured before its first step: take the first loss that its training logged.
    if start is None:
        start = points[0]["loss"] if points else record.loss
    change = record.loss - start
    changes = [point["loss"] - start for point in points]
    if points and not record.evaluations:
        # Training losses give only the form of the curve: its ends were measured on held-out text.
        first, last = record.curve[0]["loss"], record.curve[-1]["loss"]
        changes = [change * (point["loss"] - first) / (last - first or 1.0) for point in points]
    return _RecordedPhase(
        kind=record.phase,
        cycle=record.cycle,
        start=start,
        shares=[0.0, *(point["step"] / record.steps for point in points), 1.0],
        changes=[0.0, *changes, change],
        seconds=record.seconds / max(1, record.steps),
    )
