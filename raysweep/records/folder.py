"""A sweep's folder, `results/<sweep>/`, and what its files hold; lines are append-only, see jsonlines.

job.yaml        the resolved job          plans.jsonl    trials as proposed
env.json        versions, commit, machine phases.jsonl   phase records
study.journal   Optuna's journal          trials.jsonl   how each trial ended
checkpoints/    the phase store           tensorboard/   one run per trial
lanes.jsonl     worker groups started     reports.jsonl  what stopping rules were told
retries.jsonl   what lost workers cost     sessions.jsonl when drivers were at work
exports.jsonl   what was exported         stop           there while somebody asks the driver to stop
exhausted       there once the sampler has nothing left to propose
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raysweep.contracts import Report
from raysweep.errors import ArchiveError, known_names_hint
from raysweep.job.jobfile import Job, check_job
from raysweep.job.plan import Fingerprints, TrialPlan, make_plan
from raysweep.job.yamlfile import dump_mapping, load_mapping
from raysweep.records.disk import refuse_when_full
from raysweep.records.jsonlines import JsonLines
from raysweep.records.schema import PhaseRecord, Proposal, Retry, Session, TrialRecord

LOOK_S = 0.2
"""How long a driver waits for the lock: whoever looks if the sweep is running holds it for a moment."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


ON_OTHER_SEEDS = ("replicate", "confirmation")


DERIVED = (*ON_OTHER_SEEDS, "fork")
"""Proposers of trials made from another one; all others are the search's own, and its sampler hears of them."""


class SweepFolder:
    """Reads and appends the records of one sweep.

    Args:
        durable: whether a line that was appended survives a crash of the machine, too, not of the process alone.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path.resolve()
        self._lines = JsonLines(self.path, durable=durable)
        self.name = path.name
        self._phases_seen: set[tuple[int, str]] | None = None

    @staticmethod
    def create(results: Path, job: Job, name: str | None, environment: Mapping[str, Any]) -> SweepFolder:
        """Make the folder of a new sweep: `name`, or `<job>-<number>` with the next free number.

        Raises:
            ArchiveError: the name is taken or unusable, or the results folder cannot be written.
        """
        SweepFolder.check_new(results, name)
        try:
            results.mkdir(parents=True, exist_ok=True)
            folder = _make_named(results, name) if name else _make_numbered(results, job.spec.name)
            sweep = SweepFolder(folder)
            sweep.replace_environment(environment)
            _write_text(folder / "job.yaml", dump_mapping(job.spec.resolved()))  # last: a folder with a job is a sweep
        except OSError as error:
            raise ArchiveError(
                f"results folder {str(results)!r} cannot be written ({error.strerror}). Choose another with --results."
            ) from error
        return sweep

    @staticmethod
    def check_new(results: Path, name: str | None) -> None:
        """Check that a new sweep may be called `name`.

        Raises:
            ArchiveError: the name is unusable or taken.
        """
        if name is not None and not NAME.fullmatch(name):
            raise ArchiveError(f"--name {name!r}: use letters, digits, '-', '_' and '.'.")
        if name is not None and (results / name).exists():
            raise _taken(name)

    @staticmethod
    def open(results: Path, name: str) -> SweepFolder:
        """Open an existing sweep.

        Raises:
            ArchiveError: there is none of that name.
        """
        if not NAME.fullmatch(name) or not (results / name / "job.yaml").is_file():
            known = list_sweeps(results)
            hint = known_names_hint(name, known) if known else f"no {name!r}, nor any other sweep."
            raise ArchiveError(f"sweep in {str(results)!r}: {hint}")
        return SweepFolder(results / name)

    def lock(self) -> FileLock:
        """Return the taken lock that one driver at a time holds; the system frees it when the driver dies.

        Raises:
            ArchiveError: another process runs this sweep, or nobody ever can.
        """
        if self.simulated:
            raise ArchiveError(f"sweep {self.name!r} is simulated: it has no models to go on with.")
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=LOOK_S)
        except Timeout:
            raise ArchiveError(f"sweep {self.name!r} is being run by another process.") from None
        return lock

    def running(self) -> bool:
        """Whether a driver runs this sweep right now."""
        if not (self.path / ".lock").exists():
            return False
        try:
            self.lock().release()
        except ArchiveError:
            return True
        return False

    @property
    def store(self) -> Path:
        return self.path / "checkpoints"

    def store_of(self, trial: int) -> Path:
        """Return the folder of the phase store that a trial uses."""
        return self.store if self.environment()["sharing"] else self.store / f"trial-{trial}"

    def job(self) -> Job:
        return check_job(load_mapping(self.path / "job.yaml"), str(self.path / "job.yaml"))

    def replace_job(self, job: Job) -> None:
        """Write a job with other limits in the place of the sweep's own. It stays as old as it was: sweeps are listed
        by that."""
        path = self.path / "job.yaml"
        before = path.stat()
        with refuse_when_full(path):
            _write_text(path, dump_mapping(job.spec.resolved()))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def environment(self) -> dict[str, Any]:
        return json.loads((self.path / "env.json").read_text(encoding="utf-8"))

    def replace_environment(self, environment: Mapping[str, Any]) -> None:
        path = self.path / "env.json"
        with refuse_when_full(path):
            _write_text(path, json.dumps(environment, indent=2, sort_keys=True) + "\n")

    @property
    def simulated(self) -> bool:
        """Whether nothing in it was ever trained; see sweep/simulation/."""
        return (self.path / "env.json").exists() and bool(self.environment().get("simulated"))

    def proposals(self) -> dict[int, Proposal]:
        """Return every proposed trial, its latest attempt."""
        return {proposal.trial: proposal for proposal in self._lines.read("plans.jsonl", lambda line: Proposal(**line))}

    def phases(self, stop: str | None = None) -> list[PhaseRecord]:
        """Return all phase records; `stop` leaves out that field and those after it, for what need not read them."""
        return list(self._lines.read("phases.jsonl", PhaseRecord.from_dict, _skimming(stop)))

    def phases_since(self, byte: int, stop: str | None = None) -> tuple[list[PhaseRecord], int]:
        """Return the phase records from a byte of their file on, and the byte to go on from."""
        new, end = self._lines.read_since("phases.jsonl", byte)
        load = _skimming(stop)
        return [PhaseRecord.from_dict(load(line)) for line in new], end

    def trials(self) -> dict[int, TrialRecord]:
        """Return how each trial ended that has ended, and was not reopened since."""
        ended: dict[int, TrialRecord] = {}
        for line in self._lines.read("trials.jsonl", _ending):
            ended.pop(line.trial, None)
            if isinstance(line, TrialRecord):
                ended[line.trial] = line
        return ended

    def lanes(self) -> list[dict[str, Any]]:
        """Return one entry for each worker group that was started."""
        return list(self._lines.read("lanes.jsonl", dict))

    def add_proposal(self, proposal: Proposal) -> None:
        self._lines.append("plans.jsonl", proposal.__dict__)

    def add_phase(self, record: PhaseRecord) -> None:
        """Append a phase record, unless an earlier attempt of the trial already did."""
        if self._phases_seen is None:
            self._phases_seen = {(known.trial, known.key) for known in self.phases(stop="curve")}
        if (record.trial, record.key) not in self._phases_seen:
            self._lines.append("phases.jsonl", vars(record))
            self._phases_seen.add((record.trial, record.key))

    def add_trial(self, record: TrialRecord) -> None:
        """Append a final record; it and all that it rests on are on the disk then, whatever becomes of the machine."""
        self._lines.sync()
        self._lines.append("trials.jsonl", vars(record))
        self._lines.sync()

    def reopen(self, trial: int) -> None:
        """Let a trial that has ended count as unfinished; what it has finished of its phases stays."""
        self._lines.append("trials.jsonl", _Reopened(trial=trial, reopened=True).__dict__)
        self._lines.sync()

    def sessions(self) -> list[Session]:
        """Return the sessions of all drivers, oldest first, each as it was last seen."""
        seen = {
            session.session: session for session in self._lines.read("sessions.jsonl", lambda line: Session(**line))
        }
        return list(seen.values())

    def add_session(self, session: Session) -> None:
        self._lines.append("sessions.jsonl", session.__dict__)

    def exports(self) -> list[dict[str, Any]]:
        """Return one entry for each model that was exported: trial, key of its last phase, and where it went."""
        return list(self._lines.read("exports.jsonl", dict))

    def add_export(self, trial: int, key: str, out: Path) -> None:
        self._lines.append("exports.jsonl", {"trial": trial, "key": key, "out": str(out)})
        self._lines.sync()

    def exhaust(self) -> None:
        """Note that the sampler has nothing left to propose, however many trials the job asks for."""
        (self.path / "exhausted").touch()

    def exhausted(self) -> bool:
        return (self.path / "exhausted").exists()

    def request_stop(self) -> None:
        """Ask the driver, on whatever machine it runs, to stop."""
        (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    def withdraw_stop(self) -> None:
        (self.path / "stop").unlink(missing_ok=True)

    def all_reports(self) -> list[Report]:
        """Return what was reported to the stopping rule, in order; a repeated one, by a later attempt, once."""
        found: dict[tuple[int, int, str, int], Report] = {}
        for report in self._lines.read("reports.jsonl", lambda line: Report(**line)):
            found.setdefault((report.trial, report.cycle, report.phase, report.step), report)
        return list(found.values())

    def reports(self) -> dict[int, list[Report]]:
        """Return what each trial reported to its stopping rule, in order."""
        found: dict[int, list[Report]] = {}
        for report in self.all_reports():
            found.setdefault(report.trial, []).append(report)
        return found

    def add_report(self, report: Report) -> None:
        self._lines.append("reports.jsonl", report.__dict__)

    def retries(self) -> list[Retry]:
        return list(self._lines.read("retries.jsonl", lambda line: Retry(**line)))

    def add_retry(self, retry: Retry) -> None:
        self._lines.append("retries.jsonl", retry.__dict__)

    def lines(self, file: str, stop: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield what the lines of one of its files hold, as they stand; `stop` as in `phases`."""
        return self._lines.read(file, dict, _skimming(stop))

    def add_lane(self, entry: Mapping[str, Any]) -> None:
        self._lines.append("lanes.jsonl", entry)


@dataclass(frozen=True)
class _Reopened:
    trial: int
    reopened: bool


def _ending(line: dict[str, Any]) -> TrialRecord | _Reopened:
    return _Reopened(**line) if "reopened" in line else TrialRecord.from_dict(line)


def _skimming(stop: str | None) -> Callable[[bytes], Any]:
    return json.loads if stop is None else partial(PhaseRecord.skim, stop=stop)


def plan_of(job: Job, proposal: Proposal, fingerprints: Fingerprints) -> TrialPlan:
    """Resolve a proposed trial, on its own seed; stopping rules judge those that the search proposed."""
    spec = job.with_values(proposal.values, proposal.seed)
    judged = proposal.proposer not in DERIVED
    return make_plan(spec, proposal.values, trial=proposal.trial, fingerprints=fingerprints, judged=judged)


def list_sweeps(results: Path) -> list[str]:
    """Return the names of all sweeps under a results folder, oldest first."""
    jobs = [path for path in results.glob("*/job.yaml") if path.is_file()]
    return [path.parent.name for path in sorted(jobs, key=lambda path: (path.stat().st_mtime_ns, path))]


def _make_named(results: Path, name: str) -> Path:
    try:
        (results / name).mkdir()
    except FileExistsError:
        raise _taken(name) from None
    return results / name


def _taken(name: str) -> ArchiveError:
    way = f"Continue it with 'raysweep resume {name}', or choose another --name."
    return ArchiveError(f"sweep {name!r} exists already. {way}")


def _make_numbered(results: Path, job: str) -> Path:
    number = 1
    while True:
        try:
            folder = results / f"{job}-{number}"
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
