"""A sweep's folder, `results/<sweep>/`. Files of lines are append-only, see jsonlines.py.

job.yaml        the resolved job          plans.jsonl    proposed trials
env.json        versions, machine, code   phases.jsonl   phase records
study.journal   Optuna's journal          trials.jsonl   how each trial ended
checkpoints/    the phase store           tensorboard/   one run per trial
lanes.jsonl     worker groups started     reports.jsonl  losses reported to the stopping rule
retries.jsonl   what lost workers cost    sessions.jsonl runs of the driver
exports.jsonl   exported models           stop           exists while the driver is asked to stop
exhausted       exists once the sampler has nothing left to propose
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep.contracts import Report
from raysweep.errors import ArchiveError, known_names_hint
from raysweep.job.jobfile import Job, read_job
from raysweep.job.yamlfile import dump_mapping, load_mapping
from raysweep.records.disk import replace_text
from raysweep.records.jsonlines import DamagedLine, JsonLines
from raysweep.records.lines import READERS, Exported, JournalEntry, LaneGroup, Reopened, Voided, skimming
from raysweep.records.locks import Holder, Lock, take_or_refuse
from raysweep.records.results import check_new_sweep, is_sweep, list_sweeps, make_folder
from raysweep.records.schema import PhaseRecord, Proposal, Retry, Session, TrialRecord


class SweepFolder:
    """Reads and appends the records of one sweep.

    Args:
        durable: whether the records of a trial that has ended also survive a crash of the machine.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path.resolve()
        self._lines = JsonLines(self.path, durable=durable)
        self.name = path.name
        # Read only once the first phase is added: most sweeps are opened to be looked at.
        self._phases_seen: set[tuple[int, str]] | None = None

    @staticmethod
    def create(
        results: Path, job: Job, name: str | None, environment: Mapping[str, Any], *, private: bool = False
    ) -> SweepFolder:
        """Make the folder of a new sweep: `name`, or `<job>-<number>` with the next free number; see `make_folder`.

        Raises:
            ArchiveError: the name is taken or unusable, or the results folder cannot be written.
        """
        check_new_sweep(results, name)
        try:
            folder = make_folder(results, name, job.spec.name, private=private)
            sweep = SweepFolder(folder)
            sweep.replace_environment(environment)
            # The job comes last: a folder that holds one is a sweep, so it must hold everything else by then.
            replace_text(folder / "job.yaml", dump_mapping(job.spec.resolved()))
        except OSError as error:
            raise ArchiveError(
                f"results folder {str(results)!r} cannot be written ({error.strerror}). Choose another with --results "
                "or RAYSWEEP_RESULTS."
            ) from error
        return sweep

    @staticmethod
    def open(results: Path, name: str) -> SweepFolder:
        """Open an existing sweep.

        Raises:
            ArchiveError: no sweep has this name.
        """
        if not is_sweep(results, name):
            known = list_sweeps(results)
            hint = known_names_hint(name, known) if known else f"no {name!r}, nor any other sweep."
            raise ArchiveError(f"sweep in {str(results)!r}: {hint}")
        return SweepFolder(results / name)

    def lock(self, on_lost: Callable[[], None] = lambda: None) -> Lock:
        """Take the lock of the sweep's driver and return it.

        Args:
            on_lost: called should another process take it; see `Lock`.

        Raises:
            ArchiveError: another process runs this sweep, or the sweep is simulated.
        """
        if self.simulated:
            raise ArchiveError(f"sweep {self.name!r} is simulated: it has no models to go on with.")
        way = f"If that is gone, 'raysweep unlock {self.name}' says so."
        return take_or_refuse(
            Lock(self.path / ".lock", on_lost=on_lost),
            lambda holder: f"sweep {self.name!r} is being run by another process: {holder}. {way}",
        )

    def holder(self) -> Holder | None:
        """Return who holds the lock of the sweep's driver, None where nobody does; a look changes nothing."""
        return Lock(self.path / ".lock").holder()

    def running(self) -> bool:
        """Return whether a driver runs this sweep right now."""
        holder = self.holder()
        return holder is not None and not holder.dead

    @property
    def store(self) -> Path:
        """The folder of the phase store."""
        return self.path / "checkpoints"

    def store_of(self, trial: int) -> Path:
        """Return the folder of the phase store that a trial uses."""
        return self.store if self.environment()["sharing"] else self.store / f"trial-{trial}"

    def job(self) -> Job:
        """Return the sweep's job as it is stored, not checked anew; see `read_job`.

        Raises:
            SpecError: job.yaml cannot be read.
        """
        path = self.path / "job.yaml"
        return read_job(load_mapping(path), str(path))

    def replace_job(self, job: Job) -> None:
        """Replace the sweep's job by one with other limits."""
        path = self.path / "job.yaml"
        before = path.stat()
        replace_text(path, dump_mapping(job.spec.resolved()))
        # Sweeps are listed by the age of their job.
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def environment(self) -> dict[str, Any]:
        """Return what env.json says of the machine, the versions and the way in which the sweep was started.

        Raises:
            ArchiveError: the file is missing or damaged.
        """
        path = self.path / "env.json"
        try:
            return dict(json.loads(path.read_bytes()).items())
        except (OSError, ValueError, AttributeError) as error:
            way = "Put it back from a copy; the sweep cannot be used without it."
            raise ArchiveError(f"{path} cannot be read: {error}. {way}") from error

    def replace_environment(self, environment: Mapping[str, Any]) -> None:
        """Write env.json anew, whole or not at all."""
        replace_text(self.path / "env.json", json.dumps(environment, indent=2, sort_keys=True) + "\n")

    @property
    def simulated(self) -> bool:
        """Whether its numbers are made up, and nothing was trained; see sweep/simulation/."""
        return (self.path / "env.json").exists() and bool(self.environment().get("simulated"))

    def proposals(self) -> dict[int, Proposal]:
        """Return the latest attempt of every proposed trial: the last of its lines."""
        return {proposal.trial: proposal for proposal in self._read("plans.jsonl")}

    def phases(self, stop: str | None = None) -> list[PhaseRecord]:
        """Return all phase records, without the field `stop` and those after it; see `PhaseRecord.skim`."""
        return list(self._lines.read("phases.jsonl", READERS["phases.jsonl"], skimming(stop)))

    def phases_since(self, byte: int, stop: str | None = None) -> tuple[list[PhaseRecord], int]:
        """Return the phase records from a byte of their file on, and the byte from which to read next time."""
        return self._lines.read_since("phases.jsonl", byte, READERS["phases.jsonl"], skimming(stop))

    def endings(self) -> list[TrialRecord | Reopened]:
        """Return every final record, and every line that opened a trial again, in order."""
        return self._read("trials.jsonl")

    def trials(self) -> dict[int, TrialRecord]:
        """Return the final record of each trial that has ended and was not reopened since, in the order of endings."""
        ended: dict[int, TrialRecord] = {}
        for line in self.endings():
            # Removed first: a dict keeps the place of a key that is set again, but the trial has ended anew.
            ended.pop(line.trial, None)
            if isinstance(line, TrialRecord):
                ended[line.trial] = line
        return ended

    def journal(self) -> list[JournalEntry]:
        """Return the lines of study.journal; see sweep/journal.py."""
        return self._read("study.journal")

    def lanes(self) -> list[LaneGroup]:
        """Return one entry for each worker group that was started."""
        return self._read("lanes.jsonl")

    def add_proposal(self, proposal: Proposal) -> None:
        self._lines.append("plans.jsonl", proposal.__dict__)

    def add_phase(self, record: PhaseRecord) -> None:
        """Append a phase record, unless an earlier attempt of the trial has already done so."""
        if self._phases_seen is None:
            self._phases_seen = {(known.trial, known.key) for known in self.phases(stop="curve")}
        if (record.trial, record.key) not in self._phases_seen:
            self._lines.append("phases.jsonl", vars(record))
            self._phases_seen.add((record.trial, record.key))

    def add_trial(self, record: TrialRecord) -> None:
        """Append a final record; it and everything it refers to are on the disk when this returns."""
        # Before the record, too: after a crash of the machine, no final record may stand without its phases.
        self._lines.sync()
        self._lines.append("trials.jsonl", vars(record))
        self._lines.sync()

    def reopen(self, trial: int) -> None:
        """Count a trial that has ended as unfinished again; its finished phases stay."""
        self._lines.append("trials.jsonl", Reopened(trial=trial, reopened=True).__dict__)
        self._lines.sync()

    def sessions(self) -> list[Session]:
        """Return all sessions, oldest first, each as it was last written."""
        return list({session.session: session for session in self._read("sessions.jsonl")}.values())

    def add_session(self, session: Session) -> None:
        self._lines.append("sessions.jsonl", session.__dict__)

    def exports(self) -> list[Exported]:
        """Return one entry for each exported model."""
        return self._read("exports.jsonl")

    def add_export(self, trial: int, key: str, out: Path) -> None:
        self._lines.append("exports.jsonl", {"trial": trial, "key": key, "out": str(out)})
        # `raysweep gc` keeps what was exported, and knows it from this line alone.
        self._lines.sync()

    def exhaust(self, exhausted: bool = True) -> None:
        """Note whether the sampler has nothing left to propose, even if the job asks for more trials."""
        marker = self.path / "exhausted"
        marker.touch() if exhausted else marker.unlink(missing_ok=True)

    def exhausted(self) -> bool:
        return (self.path / "exhausted").exists()

    def request_stop(self) -> None:
        """Ask the driver to stop, whatever machine it runs on."""
        (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    def withdraw_stop(self) -> None:
        (self.path / "stop").unlink(missing_ok=True)

    def all_reports(self) -> list[Report]:
        """Return everything that was reported to the stopping rule, in order."""
        found: dict[tuple[int, int, str, int], Report] = {}
        # A later attempt trains some steps again and reports them again; the rule decided on the first report.
        for line in self._read("reports.jsonl"):
            if isinstance(line, Voided):
                found = {place: report for place, report in found.items() if report.trial != line.trial}
            else:
                found.setdefault((line.trial, line.cycle, line.phase, line.step), line)
        return list(found.values())

    def void_reports(self, trials: Sequence[int]) -> None:
        """Let what some trials have reported so far count no more: they begin again."""
        for trial in trials:
            self._lines.append("reports.jsonl", Voided(trial=trial, void=True).__dict__)

    def reports(self) -> dict[int, list[Report]]:
        """Return the reports to the stopping rule by trial, in order."""
        found: dict[int, list[Report]] = {}
        for report in self.all_reports():
            found.setdefault(report.trial, []).append(report)
        return found

    def add_report(self, report: Report) -> None:
        self._lines.append("reports.jsonl", report.__dict__)

    def retries(self) -> list[Retry]:
        return self._read("retries.jsonl")

    def add_retry(self, retry: Retry) -> None:
        self._lines.append("retries.jsonl", retry.__dict__)

    def damaged(self) -> dict[str, list[DamagedLine]]:
        """Return the lines that hold no record, by their file; files without any are left out."""
        found = {file: self._lines.damaged(file, read) for file, read in READERS.items()}
        return {file: lines for file, lines in found.items() if lines}

    def set_aside(self, file: str, lines: Sequence[DamagedLine]) -> None:
        """Move lines of a file to `<file>.damaged`. Only for the process that holds the sweep's lock."""
        self._lines.set_aside(file, lines)
        self._phases_seen = None

    def insert_phases(self, records: Mapping[int, Sequence[PhaseRecord]]) -> None:
        """Add phase records before the lines of their numbers, from 1; as `set_aside` in who may."""
        self._lines.insert("phases.jsonl", {line: list(map(vars, found)) for line, found in records.items()})
        self._phases_seen = None

    def add_lane(self, entry: Mapping[str, Any]) -> None:
        self._lines.append("lanes.jsonl", entry)

    def _read(self, file: str) -> list[Any]:
        return list(self._lines.read(file, READERS[file]))
