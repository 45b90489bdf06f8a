"""A driver without Ray, for what may be done to a sweep that has begun: one trial after the other, in this process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from support.helpers import cpu
from support.jobs import checked_job, quick_job

from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints
from raysweep.records import objectives
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.records.points import is_search
from raysweep.records.schema import PhaseRecord, Proposal, TrialRecord
from raysweep.sweep.code import code_of
from raysweep.sweep.limits import Limits
from raysweep.trial.forecast.preflight import preflight
from raysweep.trial.phases import run_trial
from raysweep.trial.store.phase_store import PhaseStore

SPACE = {
    "cycle.prune.level": {"choice": [0.2, 0.3]},
    "cycle.grow.ratio": {"choice": [0.0, 0.5, 1.0]},
    "cycle.learn.lr": {"log_uniform": [1e-3, 3e-3]},
}


def search_job(trials: int = 3, **changes: Any) -> Job:
    """Return a job of one cycle that searches; dotted changes as in `quick_job`."""
    changes = {"cycle__cycles": 1, "search": {"space": SPACE, "trials": trials}, **changes}
    return checked_job(quick_job(**changes), "quick.yaml")


def new_sweep(results: Path, job: Job, name: str = "s", sharing: bool = True) -> SweepFolder:
    about = {"fingerprints": preflight(job).__dict__, "sharing": sharing, "code": code_of(job)}
    return SweepFolder.create(results, job, name, about)


class InlineDriver:
    """Stands for `run_sweep`; `fail` names trials that fail after so many phases, `jobs` collects what it was given."""

    def __init__(self) -> None:
        self.fail: dict[int, int] = {}
        self.ran: list[tuple[int, str]] = []
        """Trial and label of each phase that was run, not reused."""

    def __call__(self, folder: SweepFolder, job: Job, fingerprints: Fingerprints, **how: Any) -> None:
        with Limits(folder, job) as limits:
            self._propose(folder, job)
            for trial, proposal in sorted(folder.proposals().items()):
                if trial in folder.trials():
                    continue
                plan = plan_of(job, proposal, fingerprints)
                store = PhaseStore(folder.store_of(trial))
                records: list[PhaseRecord] = []
                known = {(record.trial, record.key) for record in folder.phases()}
                for record in run_trial(plan, cpu(), store):
                    records.append(record)
                    folder.add_phase(record)
                    if not record.reused and (trial, record.key) not in known:
                        self.ran.append((trial, record.phase))
                    if limits.reached() is not None:
                        return
                    if self.fail.get(trial) == len(records):
                        break
                self._end(folder, job, proposal, records, failed=trial in self.fail)

    def _propose(self, folder: SweepFolder, job: Job) -> None:
        known = folder.proposals()
        search = job.spec.search
        left = (search.trials if search else 1) - sum(map(is_search, known.values()))
        for trial in range(max(known, default=0) + 1, max(known, default=0) + 1 + left):
            values: dict[str, Any] = {}
            if job.space is not None:
                values = dict(job.space.draw(job.spec.resolved(), random.Random(trial)))
            folder.add_proposal(Proposal(trial=trial, values=values, proposer="random", attempt=1, seed=job.spec.seed))

    def _end(self, folder: SweepFolder, job: Job, proposal: Proposal, records: list[PhaseRecord], failed: bool) -> None:
        own = [record for record in records if record.arm == "main"]
        judged = None if failed else objectives.outcome_of(job.spec.search, own, {})
        folder.add_trial(
            TrialRecord(
                trial=proposal.trial, status="FAILED" if failed else "COMPLETE", values=proposal.values,
                seed=proposal.seed, proposer=proposal.proposer, of=proposal.of, attempts=max(1, proposal.attempt),
                objective=None if failed else own[-1].loss, objectives=judged.objectives if judged else {},
                phases=[record.key for record in own], seconds=1.0, error="it broke" if failed else None,
            )
        )  # fmt: skip
