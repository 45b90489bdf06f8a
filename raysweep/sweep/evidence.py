"""Read what the invariants are checked on from a sweep's folder, once, and without the bulk of its records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from raysweep.job.jobfile import Job
from raysweep.job.plan import LOG_EVERY, TRAINING_PHASES
from raysweep.records import points
from raysweep.records.folder import SweepFolder
from raysweep.records.jsonlines import DamagedLine
from raysweep.records.lines import CREATE_TRIAL, STATES, Reopened
from raysweep.records.schema import PhaseRecord, Proposal, Retry, TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """The decision of one prune or grow."""

    kind: str
    cycle: int
    heads: list[list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """What the invariants need of one phase record."""

    trial: int
    label: str
    kind: str
    key: str
    head_map: list[list[int]]
    acts: list[Act]
    misstep: str | None
    """What is wrong with the steps that it logged; None if nothing is."""
    outcome: int
    """Hash of the fields that its key determines."""
    measured: PhaseRecord
    """Its record without what would fill the memory: curve, evaluations, events."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A final record, and whether the trial was open when it was written."""

    record: TrialRecord
    was_open: bool


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the invariants are checked on."""

    folder: SweepFolder
    job: Job
    sharing: bool
    hosts: set[str]
    """Machines from which the sweep was driven."""
    running: bool
    """Whether a driver runs the sweep right now."""
    told: list[tuple[int | None, str]]
    """Trial and Optuna's state of each line of the study's journal."""
    damaged: dict[str, list[DamagedLine]]
    """Lines that hold no record, by their file."""
    endings: list[Ending]
    ended: dict[int, TrialRecord]
    """The final records of trials that are not open, in the order in which they ended."""
    phases: dict[int, list[Phase]]
    """The phases of each trial, in the order of the archive."""
    proposals: dict[int, Proposal]
    retries: list[Retry]

    @staticmethod
    def read(folder: SweepFolder) -> Evidence:
        """Read a sweep's folder, also while the sweep runs."""
        # Last-written first: in a running sweep no line that is read then refers to one that is not read yet.
        running = folder.running()
        told = [(entry.trial, STATES[entry.state]) for entry in folder.journal() if entry.op_code == CREATE_TRIAL]
        endings, ended = _endings(folder.endings())
        phases: dict[int, list[Phase]] = defaultdict(list)
        # Trajectories, statistics and samples are most of a record's bytes, and no invariant needs them.
        for record in folder.phases(stop="trajectory"):
            phases[record.trial].append(_phase(record))
        return Evidence(
            folder=folder,
            job=folder.job(),
            sharing=folder.environment()["sharing"],
            hosts={session.host for session in folder.sessions()},
            running=running,
            told=told,
            damaged=folder.damaged(),
            endings=endings,
            ended=ended,
            phases=phases,
            proposals=folder.proposals(),
            retries=folder.retries(),
        )

    @property
    def open_trials(self) -> list[int]:
        return sorted(self.proposals.keys() - self.ended.keys())

    @property
    def planned(self) -> int:
        return points.planned(self.job.spec, self.proposals, self.ended, exhausted=self.folder.exhausted())

    @property
    def finished(self) -> bool:
        return not self.running and not self.open_trials and len(self.ended) >= self.planned


def _endings(lines: Iterable[TrialRecord | Reopened]) -> tuple[list[Ending], dict[int, TrialRecord]]:
    """Follow each trial through its final records and the lines that opened it again."""
    endings: list[Ending] = []
    ended: dict[int, TrialRecord] = {}
    for line in lines:
        # Removed first, so that the dict keeps the order of the latest endings.
        earlier = ended.pop(line.trial, None)
        if isinstance(line, TrialRecord):
            ended[line.trial] = line
            endings.append(Ending(record=line, was_open=earlier is None))
    return endings, ended


def _phase(record: PhaseRecord) -> Phase:
    arm = "" if record.arm == "main" else f"{record.arm}: "
    acts = [
        Act(kind=act["phase"], cycle=act["cycle"], heads=act["decision"]["heads"])
        for act in (vars(record), *(record.events or ()))
        if act.get("decision")
    ]
    # Not the seconds, the trial and the arm, which differ between trials that share the phase.
    outcome = (record.loss, record.head_map, record.steps, record.curve, acts)
    return Phase(
        trial=record.trial,
        label=arm + record.phase + (f"@{record.cycle}" if record.cycle > 1 else ""),
        kind=record.phase,
        key=record.key,
        head_map=record.head_map,
        acts=acts,
        misstep=_misstep(record),
        outcome=hash(repr(outcome)),
        measured=replace(record, curve=[], evaluations=[], events=None),
    )


def _misstep(record: PhaseRecord) -> str | None:
    """Compare the logged steps with those of an uninterrupted training: every tenth one and the last."""
    # A worker that resumed from a wrong step, or lost points of its curve, leaves a step out or repeats one.
    steps = record.steps if record.phase in TRAINING_PHASES else 0
    expected = [*range(LOG_EVERY, steps, LOG_EVERY), *([steps] if steps else [])]
    logged = [int(point["step"]) for point in record.curve]
    if logged != expected:
        # The first point that differs; if one list begins with the other, the first that only the longer one has.
        wrong = next((at for at, pair in enumerate(zip(logged, expected, strict=False)) if pair[0] != pair[1]),
                     min(len(logged), len(expected)))  # fmt: skip
        found = f"step {logged[wrong]}" if wrong < len(logged) else "nothing"
        wanted = f"step {expected[wrong]}" if wrong < len(expected) else "nothing"
        return f"point {wrong + 1} of its curve is {found}, not {wanted}"
    evaluated = [point["step"] for point in record.evaluations]
    if any(later <= earlier for earlier, later in zip([0, *evaluated], evaluated, strict=False)):
        return f"its held-out evaluations at steps {', '.join(f'{step:g}' for step in evaluated)} do not ascend"
    return None
