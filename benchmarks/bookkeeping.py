"""Measure the time of a trial outside its phases, for proposing, planning and recording, as the sweep grows.

Trials are stubs: their records are made up, as large as GPT-2's, and arrive at once. Everything else is real: the
agenda, the study (random search) with its journal, the recorder, TensorBoard and the archive. No Ray, no torch.
"""

from __future__ import annotations

import copy
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.many_trials import JOB, phase_records
from benchmarks.reference import figure, write
from raysweep.contracts.events import Event, PhaseFinished, TrialEnding, TrialFinished
from raysweep.job.jobfile import Job, load_job
from raysweep.job.plan import Fingerprints, TrialPlan, make_plan
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Proposal
from raysweep.reports.live.progress import Silent
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.bookkeeping import record
from raysweep.sweep.recorder import Recorder
from raysweep.sweep.study import Study

FEW, MANY = 200, 2000
RUNS = 3
FINGERPRINTS = Fingerprints(model="made up", data="made up")


def main() -> None:
    few = [1e3 * statistics.mean(sweep(FEW)) for _ in range(RUNS)]
    many = sweep(MANY)
    ratio = 1e3 * statistics.mean(many) / statistics.median(few)
    early, late = statistics.mean(many[:FEW]), statistics.mean(many[-FEW:])
    write(
        "bookkeeping",
        [
            figure(f"a trial's share of {FEW} stub trials", few, asked="<= 20", unit="ms", baseline="-"),
            figure(
                f"a trial's share of {MANY} stub trials", [1e3 * statistics.mean(many)], asked="<= 20", unit="ms",
                baseline="-",
            ),
            figure(f"{MANY} / {FEW} trials", [ratio], asked="<= 1.3", unit="x", baseline="the figures above"),
            figure(
                f"the last {FEW} of {MANY} trials / the first {FEW}", [late / early], asked="<= 1.3", unit="x",
                baseline="the same sweep",
            ),
        ],
    )  # fmt: skip


def sweep(trials: int) -> list[float]:
    """Run a sweep of stub trials; return the seconds of each, without those for making its records."""
    mapping = copy.deepcopy(JOB)
    mapping["search"]["trials"] = trials
    job = load_job(mapping)
    with tempfile.TemporaryDirectory() as results:
        folder = SweepFolder.create(Path(results), job, None, {"fingerprints": {}, "sharing": True})
        agenda = Agenda(folder, job, Study(job, folder.path / "study.journal"))
        recorder = Recorder(folder, job, Silent())
        stub = Stub(job, agenda, recorder)
        seconds = []
        while (took := stub.next_trial()) is not None:
            seconds.append(took)
        assert len(folder.trials()) == trials and agenda.finished
        return seconds


class Stub:
    """A driver whose trials end as soon as they begin."""

    def __init__(self, job: Job, agenda: Agenda, recorder: Recorder) -> None:
        self._job, self._agenda, self._recorder = job, agenda, recorder
        self._records: dict[str, dict[str, Any]] = {}
        """Return the stub records, made once for each kind of phase."""
        self._ran: set[str] = set()

    def next_trial(self) -> float | None:
        """Run one trial; return the seconds of its bookkeeping, or None if there is no further trial."""
        started = time.perf_counter()
        proposal = self._agenda.next()
        if proposal is None:
            return None
        plan = self._plan(proposal)
        self._recorder.start_trial(proposal, plan)
        began = time.perf_counter() - started
        events = self._events(plan)
        started = time.perf_counter()
        for event in events:
            record(event, self._recorder, self._agenda)
        return began + time.perf_counter() - started

    def _plan(self, proposal: Proposal) -> TrialPlan:
        spec = self._job.with_values(proposal.values, seed=proposal.seed)
        return make_plan(spec, proposal.values, trial=proposal.trial, fingerprints=FINGERPRINTS)

    def _events(self, plan: TrialPlan) -> list[Event]:
        if not self._records:
            self._records = {record.phase: record.to_dict() for record in phase_records(plan, set())}
        events: list[Event] = []
        for phase in plan.phases:
            about = {"trial": plan.trial, "key": phase.key, "reused": phase.key in self._ran}
            loss = 3.0 + random.Random(phase.key).random()
            self._ran.add(phase.key)
            content = {**self._records[phase.kind], **about, "loss": loss}
            events.append(PhaseFinished(trial=plan.trial, record=content))
        return [*events, TrialFinished(trial=plan.trial, ending=TrialEnding(status="COMPLETE"), attempts=1)]


if __name__ == "__main__":
    main()
