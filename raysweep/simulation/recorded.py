"""Losses and times that an earlier sweep recorded: each simulated trial follows one of its trials.

Taken over is by how much the loss changes within a phase, stretched to the length of the simulated one, and how long a
step took. Trials that share a phase follow the same recorded trial through it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from raysweep.archive import SweepFolder
from raysweep.errors import UsageError
from raysweep.plan import PhasePlan, derived_seed
from raysweep.plasticity.head_map import HeadMap
from raysweep.records import PhaseRecord
from raysweep.simulation.curves import SHAPE, Model


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
        kinds: the kinds of phases that will be simulated.

    Raises:
        UsageError: no trial is complete and has phases of all these kinds.
    """

    def __init__(self, folder: SweepFolder, kinds: Collection[str]) -> None:
        chains = [_chain(records) for records in _complete(folder)]
        self._trials = [chain for chain in chains if {phase.kind for phase in chain} >= set(kinds)]
        if not self._trials:
            raise UsageError(
                f"--from {folder.name}: the sweep has no complete trial with the phases {', '.join(kinds)}; name another, "
                "or leave --from out to simulate modelled curves."
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


def _complete(folder: SweepFolder) -> list[list[PhaseRecord]]:
    """Return the records of each complete trial's own phases; of shared ones those of the trial that ran them."""
    ran = {record.key: record for record in folder.phases() if not record.reused}
    trials = [trial for trial in folder.trials().values() if trial.status == "COMPLETE"]
    return [[ran[key] for key in trial.phases] for trial in trials if all(key in ran for key in trial.phases)]


def _chain(records: Sequence[PhaseRecord]) -> list[_Phase]:
    starts = [None, *(record.loss for record in records)]
    return [_phase(record, start) for record, start in zip(records, starts, strict=False)]


def _phase(record: PhaseRecord, start: float | None) -> _Phase:
    points = record.evaluations or record.curve
    if start is None:  # of a new model: nobody measured it
        start = points[0]["loss"] if points and record.steps else record.loss
    shares, changes = [0.0], [0.0]
    # Where nothing was measured on held-out text, training losses tell the form of the curve, but not its ends.
    span = 1.0 if record.evaluations or not points else _ratio(record.loss - start, points[-1]["loss"] - points[0]["loss"])
    origin = start if record.evaluations or not points else points[0]["loss"]
    for point in points:
        if 0 < point["step"] < record.steps:
            shares.append(point["step"] / record.steps)
            changes.append((point["loss"] - origin) * span)
    return _Phase(
        kind=record.phase,
        cycle=record.cycle,
        start=start,
        shares=[*shares, 1.0],
        changes=[*changes, record.loss - start],
        seconds=record.seconds / max(1, record.steps),
    )


def _ratio(of: float, to: float) -> float:
    return of / to if to else 0.0
