"""Run a sweep: Ray Tune asks the searcher for trials, thin clients hand them to lanes, events become records."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

from raysweep.cluster.connection import LOCAL_SETTINGS, SETTINGS, connected
from raysweep.errors import ClusterError, DiskFullError
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, TrialPlan
from raysweep.records.folder import SweepFolder, plan_of
from raysweep.records.schema import Proposal
from raysweep.sweep.admission import IN_HAND
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.dispatcher import ENDINGS, Event
from raysweep.sweep.limits import Limits
from raysweep.sweep.observer import Observer
from raysweep.sweep.recorder import Recorder
from raysweep.sweep.stopping import rule_of
from raysweep.sweep.study import Study

if TYPE_CHECKING:
    from raysweep.cluster.lane import LaneConfig

CLIENT_RESOURCES = {"memory": 1}  # a byte: Ray Tune insists on something, and all processors may belong to lanes


POLL_S = 1.0


def run_sweep(
    folder: SweepFolder, job: Job, fingerprints: Fingerprints, *, address: str | None, sharing: bool, observer: Observer
) -> str | None:
    """Run every trial of a sweep that has no final record yet.

    Args:
        address: a reachable Ray cluster; None starts one here, for this sweep alone.
        sharing: whether trials share equal phases.

    Returns:
        Why it stopped before its end, resumable: a budget, or a request to stop; None if it did not.

    Raises:
        SpecError: the cluster is smaller than what the job asks for.
        ClusterError: Ray could not be started or reached, or gave up.
    """
    for name, value in (SETTINGS | (LOCAL_SETTINGS if address is None and sys.platform == "linux" else {})).items():
        os.environ.setdefault(name, value)
    return _Session(folder, job, fingerprints, sharing=sharing, observer=observer).run(address)


class _Session:
    """One driver's time with a sweep: Ray Tune asks for trials, lanes run them, their events become records."""

    def __init__(
        self, folder: SweepFolder, job: Job, fingerprints: Fingerprints, *, sharing: bool, observer: Observer
    ) -> None:
        self.folder, self.job, self.fingerprints, self.sharing, self.observer = (
            folder, job, fingerprints, sharing, observer,
        )  # fmt: skip
        self.scale = job.spec.scale
        self.name = f"{folder.name}-{uuid.uuid4().hex[:8]}"
        self.scratch = folder.path / "ray"  # what Tune and Train insist on writing; nothing reads it
        self.recorder = Recorder(folder, job, observer)
        study = Study(job, folder.path / "study.journal") if job.space else None
        self.agenda = Agenda(folder, job, study)
        self.limits = Limits(folder, job)
        self.news = threading.Condition()
        """Held while the agenda is asked or told."""
        self.recorded: set[int] = set()
        """Trials whose last event the agenda has been told of."""
        self.stopped: str | None = None
        self.error: BaseException | None = None
        """What kept events from being recorded."""

    def run(self, address: str | None) -> str | None:
        remaining = self.agenda.remaining
        self.observer.sweep_started(self.folder, self.job, remaining)
        if not remaining:
            return None
        with self.limits, connected(address, self.job):
            self._run(remaining)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return self.stopped

    def _run(self, remaining: int) -> None:
        import ray
        from ray import tune

        from raysweep.cluster.client import TrialClient
        from raysweep.cluster.mailbox import NAMESPACE, Mailbox
        from raysweep.cluster.searcher import SweepSearcher

        mailbox = (
            ray.remote(Mailbox)
            .options(name=self.name, namespace=NAMESPACE, num_cpus=0)
            .remote(self.scale.max_attempts, rule_of(self.job.spec.search), self.sharing)
        )
        self._take_up_paused(ray.get(mailbox.replay.remote(self.folder.all_reports(), list(self.folder.trials()))))
        ray.get(mailbox.settle.remote())
        listener = _Listener(mailbox, self)
        listener.start()
        lanes = self._start_lanes(mailbox, remaining) if self.scale.isolation == "lane" else []
        searcher = SweepSearcher(
            lanes=self.scale.lanes,
            propose=lambda: self._propose(mailbox),
            finished=self._finished,
            start=self._start,
            waiting=lambda: ray.get(mailbox.waiting.remote()),
            ended=self._ended,
        )
        tuner = tune.Tuner(
            tune.with_resources(TrialClient, CLIENT_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,  # the searcher says when it is enough
                max_concurrent_trials=IN_HAND * self.scale.lanes,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=self.name,
                storage_path=str(self.scratch),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the phase store has what matters
            ),
        )
        try:
            errors = tuner.fit().errors
        except BaseException:
            listener.stop()  # before Ray goes away under it
            if self.error is not None:
                raise self.error from None
            raise
        listener.stop()
        if self.error is not None:
            raise self.error
        if errors:
            raise ClusterError(f"Ray Tune lost {len(errors)} trial clients: {errors[0]}")
        ray.get(mailbox.close.remote())
        ray.get([lane.join.remote() for lane in lanes])

    def _take_up_paused(self, paused: set[int]) -> None:
        """Leave what an earlier session paused to its rule, which may end it before it ever runs again."""
        for trial, proposal in self.folder.proposals().items():
            if trial in paused:
                self.recorder.start_trial(proposal, self._plan(proposal))
                self.agenda.paused(trial)

    def _plan(self, proposal: Proposal) -> TrialPlan:
        return plan_of(self.job, proposal, self.fingerprints)

    def _start_lanes(self, mailbox: Any, remaining: int) -> list[Any]:
        import ray

        from raysweep.cluster.lane import Lane

        number = min(self.scale.lanes, remaining)
        ray.get(mailbox.expect_lanes.remote(number))
        failures = remaining * self.scale.max_attempts
        actor = ray.remote(Lane).options(num_cpus=0, max_restarts=self.scale.max_attempts, max_task_retries=-1)
        return [
            actor.remote(self._lane_config(f"lane-{lane}"), self.scale, self.scratch, failures)
            for lane in range(number)
        ]

    def _lane_config(self, lane: str) -> LaneConfig:
        from raysweep.cluster.lane import LaneConfig

        return LaneConfig(name=lane, mailbox=self.name, store=str(self.folder.store), sharing=self.sharing)

    # On Ray Tune's thread.

    def _propose(self, mailbox: Any) -> Proposal | None:
        import ray

        with self.news:
            proposal = None if self.stopped else self.agenda.next()
            never = list(self.agenda.unproposed)
        if proposal is None and never:
            ray.get(mailbox.never_run.remote(never))
        return proposal

    def _finished(self) -> bool:
        with self.news:
            return self.stopped is not None or self.agenda.finished

    def _start(self, proposal: Proposal) -> dict[str, Any]:
        plan = self._plan(proposal)
        with self.news:
            self.recorded.discard(proposal.trial)
            self.recorder.start_trial(proposal, plan)
        config = {"trial": proposal.trial, "plan": plan.to_json(), "mailbox": self.name}
        if self.scale.isolation == "process":
            config["own_lane"] = {
                "config": self._lane_config(f"trial-{proposal.trial}").__dict__,
                "scale": self.scale.model_dump(),
                "storage": str(self.scratch),
                "max_failures": self.scale.max_attempts,
            }
        return config

    def _ended(self, trial: int) -> None:
        """Wait until the agenda knows: what it proposes next may depend on it."""
        with self.news:
            self.news.wait_for(lambda: trial in self.recorded or self.error is not None)

    # On the listener's thread.

    def record(self, event: Event) -> None:
        """Record an event, and tell the agenda what follows from it."""
        with self.news:
            self.recorder.handle(event)
            if event["type"] == "final":
                record = self.recorder.record_of(event["trial"])
                self.agenda.ended(record, self.recorder.reports_of(record.trial))
            elif event["type"] == "paused":
                self.agenda.paused(event["trial"])
            elif event["type"] == "resumed_by_rule":
                self.agenda.resumed(event["trial"])
            elif event["type"] == "interrupted" and self.stopped is None:  # by a worker that could not write
                self.stopped = event["reason"]
                self.error = DiskFullError(event["reason"])
            if event["type"] in ENDINGS:
                self.recorded.add(event["trial"])
                self.news.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.news:
            self.error = error
            self.news.notify_all()


class _Listener(threading.Thread):
    """Hands the mailbox's events to the session, and interrupts the sweep when a limit is reached."""

    def __init__(self, mailbox: Any, session: _Session) -> None:
        super().__init__(name="listener", daemon=True)
        self._mailbox = mailbox
        self._session = session
        self._done = threading.Event()

    def stop(self) -> None:
        """Listen no more: every trial's client is through, and so is what it waited for."""
        self._done.set()
        self.join()

    def run(self) -> None:
        import ray

        try:
            while not self._done.is_set():
                for event in ray.get(self._mailbox.events.remote(POLL_S)):
                    self._session.record(event)
                if self._session.stopped is None and (reason := self._session.limits.reached()):
                    self._session.stopped = reason
                    ray.get(self._mailbox.interrupt.remote(reason))
        except ray.exceptions.RayError:
            return  # the cluster is gone: the main thread sees it too, and says so
        except Exception as error:
            self._session.fail(error)
            ray.kill(self._mailbox)  # a sweep that cannot be recorded must not go on
