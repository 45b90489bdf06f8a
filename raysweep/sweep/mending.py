"""Mend the records of a sweep: set damaged lines aside, and bring back what they held from whatever else tells of it.

A trial's plan follows from its ending, a phase record from the phase store. What is told nowhere else is run again: its
trial counts as unfinished.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysweep.job.jobfile import Job, check_job
from raysweep.job.permission import with_modules
from raysweep.job.plan import Fingerprints, TrialPlan
from raysweep.records.folder import SweepFolder
from raysweep.records.jsonlines import DamagedLine, described
from raysweep.records.lines import CREATE_STUDY
from raysweep.records.plans import plan_of
from raysweep.records.schema import PhaseRecord, Proposal, TrialRecord
from raysweep.sweep.checkpoints import stored_record
from raysweep.sweep.wording import some


def mended_job(
    folder: SweepFolder, points: Callable[[SweepFolder], Iterable[Mapping[str, Any]]]
) -> tuple[Job, list[str]]:  # fmt: skip
    """Mend the records of a sweep that is to be worked on; return its job, checked, and in words what was done.

    Args:
        points: returns the values of the trials whose strategies are needed; see `with_modules`.

    Raises:
        UsageError: the stored job is not valid here, or a record is of another schema.
    """
    stored = folder.job()
    # Before any record is looked at.
    done = set_damaged_aside(folder)
    # The stored job is read without a check, so that any sweep can be looked at; work needs it to be valid here.
    job = with_modules(check_job(stored.spec.resolved(), stored.source), points(folder))
    return job, [*done, *_bring_back(folder, job, Fingerprints(**folder.environment()["fingerprints"]))]


def mend(folder: SweepFolder, job: Job, fingerprints: Fingerprints) -> list[str]:
    """Mend the records of a sweep, and return in words what was done. The caller holds the sweep's lock.

    Records may be lost where a line is damaged, or between the store and the archive, where the driver, the mailbox or
    the machine ends in between.

    Raises:
        ArchiveError: a record is of another schema.
    """
    return [*set_damaged_aside(folder), *_bring_back(folder, job, fingerprints)]


def _bring_back(folder: SweepFolder, job: Job, fingerprints: Fingerprints) -> list[str]:
    """Bring back what records have lost; none may hold a damaged line."""
    _mend_journal(folder)
    return [*_mend_plans(folder), *_mend_phases(folder, job, fingerprints)]


def set_damaged_aside(folder: SweepFolder) -> list[str]:
    """Set damaged lines aside, and say which; as `mend`, of which it is the first part."""
    done = []
    for file, lines in folder.damaged().items():
        folder.set_aside(file, lines)
        done.append(f"{described(folder.path / file, lines)} set aside in {file}.damaged")
    return done


def _mend_journal(folder: SweepFolder) -> None:
    """Remove the study's journal if it has lost its beginning: the study writes it anew from the archive."""
    known = folder.journal()
    if known and known[0].op_code != CREATE_STUDY:
        (folder.path / "study.journal").unlink()


def _mend_plans(folder: SweepFolder) -> Iterator[str]:
    proposals = folder.proposals()
    lost = [record for trial, record in sorted(folder.trials().items()) if trial not in proposals]
    for record in lost:
        folder.add_proposal(_proposal(record))
    if lost:
        yield f"the plans of trials {some([record.trial for record in lost])} were taken from how they ended"
    proposals, phases = folder.proposals(), folder.phases()
    gone = sorted({*range(1, max(proposals, default=0) + 1), *(record.trial for record in phases)} - set(proposals))
    if not gone:
        return
    # Nothing tells what such a trial was: its number is proposed anew, perhaps as another point. What records have of
    # it would then be another trial's.
    unknown = [
        DamagedLine(number=number, why="nothing tells of its trial's plan", content=json.dumps(vars(record)).encode())
        for number, record in enumerate(phases, start=1)
        if record.trial in gone
    ]
    if unknown:
        folder.set_aside("phases.jsonl", unknown)
    folder.void_reports(gone)
    folder.exhaust(False)
    yield f"trials {some(gone)} are proposed again: their plans are lost"


def _proposal(record: TrialRecord) -> Proposal:
    return Proposal(
        trial=record.trial, values=record.values, proposer=record.proposer, attempt=max(1, record.attempts),
        seed=record.seed, of=record.of,
    )  # fmt: skip


def _mend_phases(folder: SweepFolder, job: Job, fingerprints: Fingerprints) -> Iterator[str]:
    """Bring back the records of phases that trials have run, as far as the phase store has them."""
    where: dict[int, dict[str, int]] = defaultdict(dict)
    end = 1
    for end, record in enumerate(folder.phases(stop="curve"), start=2):
        where[record.trial][record.key] = end - 1
    found: dict[int, list[PhaseRecord]] = defaultdict(list)
    again = []
    endings = folder.trials()
    for trial, proposal in folder.proposals().items():
        arms = _arms(endings[trial] if trial in endings else plan_of(job, proposal, fingerprints))
        complete = trial in endings and endings[trial].status == "COMPLETE"
        lost = list(_lost(arms, where[trial], end, complete))
        stored = [_stored(folder.store_of(trial), trial, each) for each in lost]
        for phase, known in zip(lost, stored, strict=True):
            if known is not None and (phase.ran or not known.reused):
                found[phase.line].append(known)
        # An open trial runs again whatever it lacks.
        if trial in endings and any(phase.ran and known is None for phase, known in zip(lost, stored, strict=True)):
            again.append(trial)
    if found:
        folder.insert_phases(found)
        yield f"{sum(map(len, found.values()))} phase records were brought back from the checkpoints"
    for trial in again:
        folder.reopen(trial)
    if again:
        yield f"trials {some(again)} are run again: records of their phases are lost"


@dataclass(frozen=True, kw_only=True)
class _Lost:
    """A phase of a trial that has ended without a record of it."""

    key: str
    arm: str
    ran: bool
    """Whether it must have run: a trial that was stopped may have ended before."""
    line: int
    """The line of phases.jsonl before which its record belongs."""


def _arms(source: TrialRecord | TrialPlan) -> dict[str, list[str]]:
    """Return the keys of a trial's own phases and of each control arm's, as it ended or as it was planned."""
    if isinstance(source, TrialRecord):
        return {"main": source.phases, **source.controls}
    return {arm: [phase.key for phase in phases] for arm, phases in {"main": source.phases, **source.controls}.items()}


def _lost(arms: Mapping[str, Sequence[str]], lines: Mapping[str, int], end: int, complete: bool) -> Iterator[_Lost]:
    """Yield the phases of a trial that have no record, each once.

    Args:
        lines: the line of each of its phases that has one.
        end: the number of the line after the last.
        complete: whether the trial has run all of them.
    """
    seen = set(lines)
    for arm, keys in arms.items():
        for at, key in enumerate(keys):
            if key not in seen:
                before = [lines[other] + 1 for other in keys[:at] if other in lines]
                after = [lines[other] for other in keys[at:] if other in lines]
                # Records of a trial stand in the order of its phases: behind the one before, or in front of the next.
                line = (before[-1:] or after[:1] or [end])[0]
                yield _Lost(key=key, arm=arm, ran=complete or bool(after), line=line)
            seen.add(key)


def _stored(store: Path, trial: int, lost: _Lost) -> PhaseRecord | None:
    """Return the record of a phase as the phase store has it, None where it has not."""
    stored = stored_record(store, lost.key)
    if stored is None:
        return None
    reused = stored.trial != trial
    # How long it took to fetch a reused one is known no more.
    return replace(stored, trial=trial, arm=lost.arm, reused=reused, seconds=0.0 if reused else stored.seconds)
