"""Which checkpoints of a sweep nothing needs any more, and their removal.

Records are never touched, nor what prunes removed and growths wrote: only all the weights after a training phase. Who
needs collected weights after all, such as a fork, runs their phase again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from raysweep.job.plan import TRAINING_PHASES, Fingerprints
from raysweep.records import atomic_folders as entries
from raysweep.records import disk, objectives, points
from raysweep.records.folder import SweepFolder, plan_of
from raysweep.records.schema import PhaseRecord, TrialRecord
from raysweep.trial.store.phase_store import TENSORS

ENDED_FOR_GOOD = ("COMPLETE", "STOPPED", "DIVERGED")
"""A trial that ended otherwise may be taken up again, by resume or retry, and keeps all it has."""
Place = tuple[Path, str]
"""Folder of a phase store, and a key in it."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How many checkpoints stay, beside those that something refers to."""

    sweep_best: int = 1
    """Best trials of the sweep whose result stays; at least 1."""
    trial_best: int = 1
    """Checkpoints of lowest loss of each trial."""
    trial_latest: int = 1
    """Latest checkpoints of each trial."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All weights after a training phase, or what an interrupted or damaged one left."""

    path: Path
    phase: str
    trials: list[int]
    """Those that have the phase."""
    bytes: int
    why: str
    """What needs it, or what it is where nothing does."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    kept: list[Checkpoint]
    collected: list[Checkpoint]
    """What nothing needs."""


def survey(folder: SweepFolder, keep: Keep) -> Survey:
    """Look through the phase store of a sweep; changes nothing."""
    assert keep.sweep_best >= 1, "the best trial always stays"
    known = _Known(folder)
    needed = known.needed(keep)
    kept: list[Checkpoint] = []
    collected: list[Checkpoint] = []
    for place, path in _weights(folder):
        phase, trials = known.about(place)
        why = needed.get(place) or (None if place in known.phases else "no record knows it")
        found = Checkpoint(
            path=path, phase=phase, trials=trials, bytes=disk.size(path), why=why or "superseded, and not shared"
        )
        (kept if why else collected).append(found)
    collected += list(_remains(folder, in_use=bool(known.open_trials)))
    return Survey(kept=kept, collected=collected)


def collect(found: Survey) -> None:
    """Remove what a survey found that nothing needs. Nobody else may be using the store."""
    for checkpoint in found.collected:
        if checkpoint.path.name == TENSORS:
            entries.collect(checkpoint.path.parent, TENSORS)
        else:
            entries.remove(checkpoint.path)


class _Known:
    """What the archive says of a sweep's checkpoints."""

    def __init__(self, folder: SweepFolder) -> None:
        about = folder.environment()
        self._store, self._sharing = folder.store, about["sharing"]
        self._job, self._fingerprints = folder.job(), Fingerprints(**about["fingerprints"])
        self._proposals, self._ended = folder.proposals(), folder.trials()
        self._exported = [(entry["trial"], entry["key"]) for entry in folder.exports()]
        self.own: defaultdict[int, list[PhaseRecord]] = defaultdict(list)
        """Of each trial its own phases, in order; those of its control arms left out."""
        self._ran: defaultdict[int, set[str]] = defaultdict(set)
        self.phases: defaultdict[Place, list[PhaseRecord]] = defaultdict(list)
        for record in folder.phases(stop="curve"):
            self.phases[self._place(record.trial, record.key)].append(record)
            self._ran[record.trial].add(record.key)
            if record.arm == "main":
                self.own[record.trial].append(record)

    @property
    def open_trials(self) -> list[int]:
        """Trials that may go on."""
        return [trial for trial in self._proposals if not self._is_over(trial)]

    def about(self, place: Place) -> tuple[str, list[int]]:
        """Return the phase and the trials that a checkpoint is of."""
        records = self.phases.get(place, [])
        label = f"{records[0].phase}{f'@{records[0].cycle}' if records[0].cycle > 1 else ''}" if records else "unknown"
        return label, sorted({record.trial for record in records})

    def needed(self, keep: Keep) -> dict[Place, str]:
        """Return what is needed, and the first reason why."""
        found: dict[Place, str] = {}
        for place, why in self._reasons(keep):
            found.setdefault(place, why)
        return found

    def _reasons(self, keep: Keep) -> Iterator[tuple[Place, str]]:
        for trial in self._best(keep.sweep_best):
            halted = self._ended[trial].halted
            last = [record.key for record in self.own[trial][-1:]]
            for key in [*last, *([halted["kept"]] if halted else [])]:
                yield from self._behind(trial, key, f"trial {trial} is among the best")
        for trial in self.open_trials:
            parent = self._proposals[trial].of if self._proposals[trial].proposer == "fork" else None
            for needed in (trial, *([] if parent is None else [parent])):
                yield from (
                    (self._place(needed, key), f"trial {trial} may go on from it") for key in self._keys(needed)
                )
        for trial, key in self._exported:
            yield from self._behind(trial, key, f"trial {trial} was exported")
        for place, records in self.phases.items():
            if len({record.trial for record in records}) > 1:
                yield place, "several trials share it"
            elif self._search_left and any(record.phase == "baseline" for record in records):
                yield place, "the next trials may share it"
        for trial in self._ended:
            trained = [record for record in self.own[trial] if record.phase in TRAINING_PHASES and record.steps]
            for record in trained[len(trained) - keep.trial_latest :] if keep.trial_latest else []:
                yield self._place(trial, record.key), f"the latest of trial {trial}"
            for record in sorted(trained, key=lambda record: record.loss)[: keep.trial_best]:
                yield self._place(trial, record.key), f"the best of trial {trial}"

    def _best(self, count: int) -> list[int]:
        """Return the best trials, with the whole of a Pareto front, and the winner over several seeds."""
        complete = {trial: record for trial, record in self._ended.items() if record.status == "COMPLETE"}
        kept = {trial: _goals(record) for trial, record in complete.items() if objectives.feasible(record.violations)}
        others = {trial: _goals(record) for trial, record in complete.items() if trial not in kept}
        best = _best_of(kept, count) or _best_of(others, count)
        for point in points.front(points.gather(self._proposals, self._ended)):
            best += [point.trial, *(record.trial for record in point.by_seed.values())]
        return list(dict.fromkeys(best))

    def _behind(self, trial: int, key: str, why: str) -> Iterator[tuple[Place, str]]:
        """Yield the weights that the state after a phase is restored from: the last before it, or its own."""
        keys = [record.key for record in self.own[trial]]
        if key in keys:
            before = self.own[trial][: keys.index(key) + 1]
            trained = [record for record in before if record.phase in TRAINING_PHASES and record.steps]
            yield from ((self._place(trial, record.key), why) for record in trained[-1:])

    def _keys(self, trial: int) -> set[str]:
        """Return the keys of all phases that a trial has run or would run."""
        planned = plan_of(self._job, self._proposals[trial], self._fingerprints).every_phase()
        return self._ran[trial] | {phase.key for phase in planned}

    @property
    def _search_left(self) -> bool:
        search = self._job.spec.search
        return sum(map(points.is_search, self._proposals.values())) < (search.trials if search else 1)

    def _is_over(self, trial: int) -> bool:
        return trial in self._ended and self._ended[trial].status in ENDED_FOR_GOOD

    def _place(self, trial: int, key: str) -> Place:
        return (self._store if self._sharing else self._store / f"trial-{trial}"), key


def _best_of(candidates: Mapping[int, objectives.Goals], count: int) -> list[int]:
    best: list[int] = []
    waiting = dict(candidates)
    while waiting and len(best) < count:
        front = objectives.front(waiting)
        best += front
        waiting = {trial: goals for trial, goals in waiting.items() if trial not in front}
    return best


def _goals(record: TrialRecord) -> dict[str, float]:
    return record.objectives or {"objective": float("inf") if record.objective is None else record.objective}


def _stores(folder: SweepFolder) -> list[Path]:
    return [folder.store, *sorted(folder.store.glob("trial-*"))]


def _weights(folder: SweepFolder) -> Iterator[tuple[Place, Path]]:
    for store in _stores(folder):
        for path in sorted(store.glob(f"*/{TENSORS}")):
            if path.parent.suffix != ".damaged":
                yield (store, path.parent.name), path


def _remains(folder: SweepFolder, in_use: bool) -> Iterator[Checkpoint]:
    """Yield what is no entry: damaged ones, what killed writers left, and checkpoints inside phases that are over."""
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
