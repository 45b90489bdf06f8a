"""Read what the invariants are checked on from a sweep's folder, once, and without the bulk of its records."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from raysweep.job.jobfile import Job
from raysweep.job.plan import LOG_EVERY, TRAINING_PHASES
from raysweep.records import points
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Proposal, Retry, Status, TrialRecord

CREATE_TRIAL = 4
"""The operation of Optuna's journal that adds a trial, here always one that has ended."""
STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")
"""Optuna's states of a trial, by their numbers in the journal."""


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
        told = list(_told(folder.path / "study.journal"))
        endings, ended = _endings(folder.lines("trials.jsonl"))
        phases: dict[int, list[Phase]] = defaultdict(list)
        # Trajectories, statistics and samples are most of a record's bytes, and no invariant needs them.
        for line in folder.lines("phases.jsonl", stop="trajectory"):
            phases[line["trial"]].append(_phase(line))
        return Evidence(
            folder=folder,
            job=folder.job(),
            sharing=folder.environment()["sharing"],
            hosts={session.host for session in folder.sessions()},
            running=running,
            told=told,
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


def _endings(lines: Iterable[Mapping[str, Any]]) -> tuple[list[Ending], dict[int, TrialRecord]]:
    """Follow each trial through its final records and the lines that opened it again."""
    endings: list[Ending] = []
    ended: dict[int, TrialRecord] = {}
    for line in lines:
        # Removed first, so that the dict keeps the order of the latest endings. A line without a status opens the trial
        # again.
        earlier = ended.pop(line["trial"], None)
        if line.get("status") in get_args(Status):
            record = ended[line["trial"]] = TrialRecord.from_dict(line)
            endings.append(Ending(record=record, was_open=earlier is None))
    return endings, ended


def _told(journal: Path) -> Iterator[tuple[int | None, str]]:
    if not journal.exists():
        return
    # Line by line and without Optuna: only the trial's number and its state are needed.
    with journal.open("rb") as stream:
        for line in stream:
            # The driver may be in the middle of a line.
            if line.endswith(b"\n"):
                entry = json.loads(line)
                if entry["op_code"] == CREATE_TRIAL:
                    yield entry.get("user_attrs", {}).get("trial"), STATES[entry.get("state", 0)]


def _phase(line: Mapping[str, Any]) -> Phase:
    arm = "" if line["arm"] == "main" else f"{line['arm']}: "
    acts = [
        Act(kind=act["phase"], cycle=act["cycle"], heads=act["decision"]["heads"])
        for act in (line, *(line["events"] or ()))
        if act.get("decision")
    ]
    # Not the seconds, the trial and the arm, which differ between trials that share the phase.
    outcome = (line["loss"], line["head_map"], line["steps"], line["curve"], acts)
    return Phase(
        trial=line["trial"],
        label=arm + line["phase"] + (f"@{line['cycle']}" if line["cycle"] > 1 else ""),
        kind=line["phase"],
        key=line["key"],
        head_map=line["head_map"],
        acts=acts,
        misstep=_misstep(line),
        outcome=hash(repr(outcome)),
    )


def _misstep(line: Mapping[str, Any]) -> str | None:
    """Compare the logged steps with those of an uninterrupted training: every tenth one and the last."""
    # A worker that resumed from a wrong step, or lost points of its curve, leaves a step out or repeats one.
    steps = line["steps"] if line["phase"] in TRAINING_PHASES else 0
    expected = [*range(LOG_EVERY, steps, LOG_EVERY), *([steps] if steps else [])]
    logged = [int(point["step"]) for point in line["curve"]]
    if logged != expected:
        # The first point that differs; if one list begins with the other, the first that only the longer one has.
        wrong = next((at for at, pair in enumerate(zip(logged, expected, strict=False)) if pair[0] != pair[1]),
                     min(len(logged), len(expected)))  # fmt: skip
        found = f"step {logged[wrong]}" if wrong < len(logged) else "nothing"
        wanted = f"step {expected[wrong]}" if wrong < len(expected) else "nothing"
        return f"point {wrong + 1} of its curve is {found}, not {wanted}"
    evaluated = [point["step"] for point in line["evaluations"]]
    if any(later <= earlier for earlier, later in zip([0, *evaluated], evaluated, strict=False)):
        return f"its held-out evaluations at steps {', '.join(f'{step:g}' for step in evaluated)} do not ascend"
    return None
