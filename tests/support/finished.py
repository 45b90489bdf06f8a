"""The folder of a sweep whose only trial ran here, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.helpers import cpu
from support.jobs import checked_job, quick_job

from raysweep.job.plan import make_plan
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Proposal, Status, TrialRecord
from raysweep.trial.forecast.preflight import preflight
from raysweep.trial.phases import run_trial
from raysweep.trial.store.phase_store import PhaseStore


def finished_sweep(
    results: Path, name: str, *, status: Status = "COMPLETE", phases: int | None = None, **changes: Any
) -> SweepFolder:
    """Run one trial, or the first phases of it, and leave its sweep's folder."""
    job = checked_job(quick_job(**changes), "quick.yaml")
    fingerprints = preflight(job)
    folder = SweepFolder.create(results, job, name, {"fingerprints": fingerprints.__dict__, "sharing": True})
    plan = make_plan(job.spec, {}, trial=1, fingerprints=fingerprints)
    folder.add_proposal(Proposal(trial=1, values={}, proposer="job", seed=0, attempt=1))
    for record, _ in zip(run_trial(plan, cpu(), PhaseStore(folder.store)), plan.phases[:phases], strict=False):
        folder.add_phase(record)
    folder.add_trial(
        TrialRecord(
            trial=1, status=status, values={}, seed=0, proposer="job", objective=None, attempts=1,
            phases=[phase.key for phase in plan.phases], seconds=1.0, error="it broke" if status == "FAILED" else None,
        )
    )  # fmt: skip
    return folder
