"""Find the checkpoints of a sweep that nothing needs any more, and remove them.

Only the tensors after training phases are removed, never records, nor the slices of prunes and growths. A trial that
needs removed tensors after all, such as a fork, runs their phase again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from raysweep.job.plan import TRAINING_PHASES, Fingerprints
from raysweep.records import atomic_folders as entries
from raysweep.records import disk, objectives, points
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.records.schema import PhaseRecord, TrialRecord
from raysweep.trial.store.names import MOMENTS, TENSORS

ENDED_FOR_GOOD = ("COMPLETE", "STOPPED", "DIVERGED")
"""Trials with another status may be resumed or retried, and keep all their checkpoints."""
Place = tuple[Path, str]
"""Folder of a phase store, and a key in it."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How many checkpoints are kept, beside those that something refers to."""

    sweep_best: int = 1
    """Number of best trials of the sweep whose results are kept; at least 1."""
    trial_best: int = 1
    """Number of checkpoints of lowest loss kept of each trial."""
    trial_latest: int = 1
    """Number of latest checkpoints kept of each trial."""


POLICIES = {"results": Keep(), "best": Keep(trial_best=0, trial_latest=0)}
"""What `scale.keep` names: what stays of trials that have ended while the sweep goes on."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights or moments after a training phase, or what an interrupted or damaged phase left."""

    path: Path
    phase: str
    trials: list[int]
    """Trials that have the phase."""
    bytes: int
    why: str
    """Why it is kept, or why it is not needed."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The checkpoints of a sweep, divided into those to keep and those to remove."""

    kept: list[Checkpoint]
    collected: list[Checkpoint]
    """Checkpoints that nothing needs."""


def survey(folder: SweepFolder, keep: Keep) -> Survey:
    """Return which checkpoints in the phase store of a sweep are needed, and which are not; change nothing."""
    assert keep.sweep_best >= 1, "the best trial always stays"
    known = _Known(folder)
    needed, trained_on = known.needed(keep), dict(known.trained_on())
    kept: list[Checkpoint] = []
    collected: list[Checkpoint] = []
    for place, path in _weights(folder):
        phase, trials = known.about(place)
        moments = path.name == MOMENTS
        # A checkpoint without a record is kept: its phase may have ended just before the record was written.
        why = (trained_on if moments else needed).get(place) or (
            None if place in known.phases else "no record knows it"
        )
        superseded = "moments of trials that have ended" if moments else "superseded, and not shared"
        found = Checkpoint(path=path, phase=phase, trials=trials, bytes=disk.size(path), why=why or superseded)
        (kept if why else collected).append(found)
    # A trial that may resume would go on from the checkpoint inside its phase, so that is kept as long as any may.
    collected += list(_remains(folder, in_use=bool(known.open_trials)))
    return Survey(kept=kept, collected=collected)


def collect(found: Survey) -> None:
    """Remove the checkpoints that nothing needs. Trials that were open at the survey may be running."""
    for checkpoint in found.collected:
        # Of an entry only the tensors go, and its manifest says so: a file missing without a word would be damage.
        if checkpoint.path.name in (TENSORS, MOMENTS):
            entries.collect(checkpoint.path.parent, checkpoint.path.name)
        else:
            entries.remove(checkpoint.path)


class _Known:
    """What the records of a sweep say about its checkpoints."""

    def __init__(self, folder: SweepFolder) -> None:
        about = folder.environment()
        self._store, self._sharing = folder.store, about["sharing"]
        self._job, self._fingerprints = folder.job(), Fingerprints(**about["fingerprints"])
        self._proposals, self._ended = folder.proposals(), folder.trials()
        self._exported = [(export.trial, export.key) for export in folder.exports()]
        self.own: defaultdict[int, list[PhaseRecord]] = defaultdict(list)
        """Each trial's own phases, in order, without those of its control arms."""
        self._ran: defaultdict[int, set[str]] = defaultdict(set)
        """Keys of all phases that each trial has run or reused, control arms included."""
        self.phases: defaultdict[Place, list[PhaseRecord]] = defaultdict(list)
        """The records of each entry of the store, one for every trial that has the phase."""
        # The long fields of a record, from the curve on, are not parsed: a sweep may have thousands of records.
        for record in folder.phases(stop="curve"):
            self.phases[self._place(record.trial, record.key)].append(record)
            self._ran[record.trial].add(record.key)
            # Results, and what `best` and `latest` mean, are about a trial's own phases, not about its control arms.
            if record.arm == "main":
                self.own[record.trial].append(record)

    @property
    def open_trials(self) -> list[int]:
        """Trials that have not ended for good, and may resume."""
        return [trial for trial in self._proposals if not self._is_over(trial)]

    def about(self, place: Place) -> tuple[str, list[int]]:
        """Return the phase of a checkpoint, with its cycle after the first, and the trials that have the phase."""
        records = self.phases.get(place, [])
        label = f"{records[0].phase}{f'@{records[0].cycle}' if records[0].cycle > 1 else ''}" if records else "unknown"
        return label, sorted({record.trial for record in records})

    def needed(self, keep: Keep) -> dict[Place, str]:
        """Return the checkpoints that are needed, each with the first reason found."""
        found: dict[Place, str] = {}
        for place, why in self._reasons(keep):
            found.setdefault(place, why)
        return found

    def _reasons(self, keep: Keep) -> Iterator[tuple[Place, str]]:
        """Yield every reason to keep a checkpoint, the strongest first."""
        for trial in self._best(keep.sweep_best):
            # The result of a halted trial is an earlier phase than its last one; both can then be restored.
            halted = self._ended[trial].halted
            last = [record.key for record in self.own[trial][-1:]]
            for key in [*last, *([halted["kept"]] if halted else [])]:
                yield from self._behind(trial, key, f"trial {trial} is among the best")
        yield from self.trained_on()
        # The phase that an export was made from can be restored as long as its checkpoint is kept.
        for trial, key in self._exported:
            yield from self._behind(trial, key, f"trial {trial} was exported")
        for place, records in self.phases.items():
            if len({record.trial for record in records}) > 1:
                yield place, "several trials share it"
        # A phase without steps has no tensors of its own, so it is no checkpoint to count.
        for trial in self._ended:
            trained = [record for record in self.own[trial] if record.phase in TRAINING_PHASES and record.steps]
            for record in trained[-keep.trial_latest :] if keep.trial_latest else []:
                yield self._place(trial, record.key), f"the latest of trial {trial}"
            for record in sorted(trained, key=lambda record: record.loss)[: keep.trial_best]:
                yield self._place(trial, record.key), f"the best of trial {trial}"

    def trained_on(self) -> Iterator[tuple[Place, str]]:
        """Yield the checkpoints that trials still to come may train on, so that they need the optimizer's moments."""
        for trial in self.open_trials:
            # A fork begins with phases of its parent, so an open fork keeps those, too.
            parent = self._proposals[trial].of if self._proposals[trial].proposer == "fork" else None
            for needed in (trial, *([] if parent is None else [parent])):
                yield from (
                    (self._place(needed, key), f"trial {trial} may go on from it") for key in self._keys(needed)
                )
        # While points are still to be proposed, every baseline may be the prefix of one of them.
        for place, records in self.phases.items() if self._search_left else ():
            if any(record.phase == "baseline" and record.arm == "main" for record in records):
                yield place, "the next trials may share it"

    def _best(self, count: int) -> list[int]:
        """Return the best trials, at least `count` of them, and every seed of the best points.

        A Pareto front is returned whole, even if it has more than `count` trials.
        """
        complete = {trial: record for trial, record in self._ended.items() if record.status == "COMPLETE"}
        kept = {trial: _goals(record) for trial, record in complete.items() if objectives.feasible(record.violations)}
        others = {trial: _goals(record) for trial, record in complete.items() if trial not in kept}
        # If every trial violates a constraint, the best of those stay: the best result is never removed.
        best = _best_of(kept, count) or _best_of(others, count)
        for point in points.front(points.gather(self._proposals, self._ended)):
            best += [point.trial, *(record.trial for record in point.by_seed.values())]
        return list(dict.fromkeys(best))

    def _behind(self, trial: int, key: str, why: str) -> Iterator[tuple[Place, str]]:
        """Yield the checkpoint that the state after a phase is restored from: its own, or the newest before it."""
        keys = [record.key for record in self.own[trial]]
        if key in keys:
            before = self.own[trial][: keys.index(key) + 1]
            trained = [record for record in before if record.phase in TRAINING_PHASES and record.steps]
            yield from ((self._place(trial, record.key), why) for record in trained[-1:])

    def _keys(self, trial: int) -> set[str]:
        """Return the keys of all phases that a trial has run or would run."""
        # The phases still to come count, too: another trial may have run them already.
        planned = plan_of(self._job, self._proposals[trial], self._fingerprints).every_phase()
        return self._ran[trial] | {phase.key for phase in planned}

    @property
    def _search_left(self) -> bool:
        """Whether the search has fewer proposals than trials."""
        search = self._job.spec.search
        return sum(map(points.is_search, self._proposals.values())) < (search.trials if search else 1)

    def _is_over(self, trial: int) -> bool:
        return trial in self._ended and self._ended[trial].status in ENDED_FOR_GOOD

    def _place(self, trial: int, key: str) -> Place:
        """Return where a phase of a trial is stored: in the sweep's store, or without sharing in the trial's own."""
        return (self._store if self._sharing else self._store / f"trial-{trial}"), key


def _best_of(candidates: Mapping[int, objectives.Goals], count: int) -> list[int]:
    """Return whole Pareto fronts, the best first, until they have `count` trials."""
    # A front is not cut: of trials that are better in different objectives, none is the better one.
    best: list[int] = []
    waiting = dict(candidates)
    while waiting and len(best) < count:
        front = objectives.front(waiting)
        best += front
        waiting = {trial: goals for trial, goals in waiting.items() if trial not in front}
    return best


def _goals(record: TrialRecord) -> dict[str, float]:
    """Return the objectives of a trial; a trial without any counts as the worst."""
    return record.objectives or {"objective": float("inf") if record.objective is None else record.objective}


def _stores(folder: SweepFolder) -> list[Path]:
    """Return the folders of a sweep's phase stores: one for all trials, or one each where phases are not shared."""
    return [folder.store, *sorted(folder.store.glob("trial-*"))]


def _weights(folder: SweepFolder) -> Iterator[tuple[Place, Path]]:
    """Yield the place and the tensor file of every undamaged entry that has one."""
    for store in _stores(folder):
        for path in sorted([*store.glob(f"*/{TENSORS}"), *store.glob(f"*/{MOMENTS}")]):
            # What was set aside as damaged is no entry; it is listed among the remains.
            if path.parent.suffix != ".damaged":
                yield (store, path.parent.name), path


def _remains(folder: SweepFolder, in_use: bool) -> Iterator[Checkpoint]:
    """Yield what is no entry: damaged ones, unfinished folders, and checkpoints inside phases that are over.

    Args:
        in_use: a trial may still resume, so the checkpoint inside a phase without an entry stays.
    """
    for store in _stores(folder):
        found = [(path, "damaged, set aside") for path in store.glob("*.damaged")]
        found += [(path, "left by a killed writer") for path in entries.leftovers(store)]
        found += [
            (path, "inside a phase that is over")
            for path in store.glob("*.partial")
            if not in_use or (store / path.stem).is_dir()
        ]
        for path, why in sorted(found):
            yield Checkpoint(path=path, phase="", trials=[], bytes=disk.size(path), why=why)
