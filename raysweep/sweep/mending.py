"""Mend a sweep's records from its phase store: a phase that is in the store, but whose record was lost, gets it back.

A record may be lost between the store and the archive, where the driver, the mailbox or the machine ends in between, or
where a line of the archive is damaged.
"""

from __future__ import annotations

import json
from dataclasses import replace

from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, TrialPlan
from raysweep.records import atomic_folders as entries
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.records.schema import PhaseRecord
from raysweep.sweep.checkpoints import OUTCOME


def mend(folder: SweepFolder, job: Job, fingerprints: Fingerprints) -> list[PhaseRecord]:
    """Add the missing phase records of every trial; return what was added.

    A trial that has ended gets each phase that its final record names. An open one gets those that it has run itself:
    it announces the others anew when it goes on.
    """
    recorded = {(record.trial, record.key) for record in folder.phases(stop="curve")}
    added, endings = [], folder.trials()
    for trial, proposal in folder.proposals().items():
        ending = endings.get(trial)
        arms = {"main": ending.phases, **ending.controls} if ending else _planned(plan_of(job, proposal, fingerprints))
        # An arm names the phases that it shares with the trial, too: those are recorded once, as the trial's own.
        for arm, key in [(arm, key) for arm, keys in arms.items() for key in keys]:
            if (trial, key) not in recorded:
                recorded.add((trial, key))
                record = _stored(folder, trial, arm, key)
                if record is not None and (ending or not record.reused):
                    folder.add_phase(record)
                    added.append(record)
    return added


def _planned(plan: TrialPlan) -> dict[str, list[str]]:
    return {arm: [phase.key for phase in phases] for arm, phases in {"main": plan.phases, **plan.controls}.items()}


def _stored(folder: SweepFolder, trial: int, arm: str, key: str) -> PhaseRecord | None:
    """Return the record that a trial has of a phase in the store; None where the phase is not there, or damaged."""
    entry = folder.store_of(trial) / key
    if not entry.is_dir():
        return None
    try:
        entries.check(entry, OUTCOME)
    except entries.DamagedError:
        # The trial that next needs the phase sets the entry aside and says so.
        return None
    outcome = json.loads((entry / OUTCOME).read_bytes())
    record = PhaseRecord.from_dict(outcome["record"])
    reused = outcome["trial"] != trial
    return replace(record, trial=trial, arm=arm, reused=reused, seconds=0.0 if reused else record.seconds)
