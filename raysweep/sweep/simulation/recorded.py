"""Losses and times that an earlier sweep recorded: each simulated trial follows one of its trials.

Taken over is by how much the loss changes within a phase, stretched to the length of the simulated one, and how long a
step took. Trials that share a phase follow the same recorded trial through it.
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
class _Phase:
    """A recorded phase: the loss that it began with, by how much that changed by which share of it, and its pace."""

    kind: str
    cycle: int
    start: float
    shares: list[float]
    changes: list[float]
    seconds: float
    """A step; of a phase without any, the phase."""

    def change(self, share: float) -> float:
        after = min(bisect_right(self.shares, share), len(self.shares) - 1)
        left, right = self.shares[after - 1], self.shares[after]
        low, high = self.changes[after - 1], self.changes[after]
        return low + (high - low) * (share - left) / (right - left)


class Recorded:
    """Curves of a sweep's complete trials.

    Args:
        job: what will be simulated.

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
        return derived_seed(phase.key, "source") % len(self._trials)

    def _phase(self, phase: PhasePlan, before: Model | None) -> _Phase:
        """Return the recorded phase of the same kind, of the same cycle or the last one before it that there is."""
        same = [known for known in self._trials[self._source(phase, before)] if known.kind == phase.kind]
        return next((known for known in reversed(same) if known.cycle <= phase.cycle), same[0])


def _kinds(job: Job) -> list[str]:
    values = job.space.draw(job.spec.resolved(), random.Random(0)) if job.space else {}
    nowhere = Fingerprints(model="", data="")
    plan = make_plan(job.with_values(values), values, trial=1, fingerprints=nowhere)
    return list(dict.fromkeys(phase.kind for phase in plan.every_phase()))


def _complete(folder: SweepFolder) -> list[list[PhaseRecord]]:
    """Return the records of each complete trial's own phases; of shared ones those of the trial that ran them."""
    ran = {record.key: record for record in folder.phases() if not record.reused}
    trials = [trial for trial in folder.trials().values() if trial.status == "COMPLETE"]
    return [[ran[key] for key in trial.phases] for trial in trials if all(key in ran for key in trial.phases)]


def _chain(records: Sequence[PhaseRecord]) -> list[_Phase]:
    starts = [None, *(record.loss for record in records)]
    return [_phase(record, start) for record, start in zip(records, starts, strict=False)]


def _phase(record: PhaseRecord, start: float | None) -> _Phase:
    points = [point for point in record.evaluations or record.curve if point["step"] < record.steps]
    if start is None:  # a new model: nobody measured it
        start = points[0]["loss"] if points else record.loss
    change = record.loss - start
    changes = [point["loss"] - start for point in points]
    if points and not record.evaluations:
        # Training losses tell the form of the curve alone: its ends were measured on held-out text.
        first, last = record.curve[0]["loss"], record.curve[-1]["loss"]
        changes = [change * (point["loss"] - first) / (last - first or 1.0) for point in points]
    return _Phase(
        kind=record.phase,
        cycle=record.cycle,
        start=start,
        shares=[0.0, *(point["step"] / record.steps for point in points), 1.0],
        changes=[0.0, *changes, change],
        seconds=record.seconds / max(1, record.steps),
    )
