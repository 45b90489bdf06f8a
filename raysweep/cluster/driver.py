"""Run a sweep: Ray Tune asks the searcher for trials, thin clients hand them to lanes, events become records."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

from raysweep.cluster.connection import LOCAL_SETTINGS, SETTINGS, connected
from raysweep.cluster.delivery import Reader
from raysweep.contracts.events import Event, OffLane, SweepInterrupted, from_json
from raysweep.errors import ClusterError, DiskFullError
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, TrialPlan
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.records.schema import Proposal
from raysweep.sweep.admission import IN_HAND
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.bookkeeping import record
from raysweep.sweep.limits import Limits
from raysweep.sweep.mending import mend
from raysweep.sweep.observer import Observer
from raysweep.sweep.recorder import Recorder
from raysweep.sweep.stopping import rule_of
from raysweep.sweep.study import Study

if TYPE_CHECKING:
    from raysweep.cluster.lane import LaneConfig

CLIENT_RESOURCES = {"memory": 1}
"""A byte: Ray Tune insists on something, and all processors may belong to lanes."""
POLL_S = 1.0
"""How long one call to the mailbox waits for events, and so how often the limits are checked."""


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
    # Ray reads these when it is imported; what the user has set stays.
    for name, value in (SETTINGS | (LOCAL_SETTINGS if address is None and sys.platform == "linux" else {})).items():
        os.environ.setdefault(name, value)
    return _Session(folder, job, fingerprints, sharing=sharing, observer=observer).run(address)


class _Session:
    """One driver's time with a sweep: Ray Tune asks for trials, lanes run them, their events become records.

    Two threads meet here: the caller's, in which Ray Tune asks for trials, and the listener's, which records events.
    """

    def __init__(
        self, folder: SweepFolder, job: Job, fingerprints: Fingerprints, *, sharing: bool, observer: Observer
    ) -> None:
        self.folder, self.job, self.fingerprints, self.sharing, self.observer = (
            folder, job, fingerprints, sharing, observer,
        )  # fmt: skip
        self.scale = job.spec.scale
        # Unique: a killed session's actors and Train runs may still be there under the sweep's name.
        self.name = f"{folder.name}-{uuid.uuid4().hex[:8]}"
        self.scratch = folder.path / "ray"
        """What Tune and Train insist on writing; nothing reads it."""
        self.recorder = Recorder(folder, job, observer)
        study = Study(job, folder.path / "study.journal") if job.space else None
        self.agenda = Agenda(folder, job, study)
        self.limits = Limits(folder, job)
        self.news = threading.Condition()
        """Held by whoever uses the agenda; notified when a trial has left its lane, and when recording fails."""
        self.recorded: set[int] = set()
        """Trials off their lanes of which the agenda knows."""
        self.tickets = itertools.count(1)
        """Numbers of the trials' starts."""
        self.stopped: str | None = None
        """Why the sweep stops before its end."""
        self.error: BaseException | None = None
        """What kept events from being recorded."""

    def run(self, address: str | None) -> str | None:
        remaining = self.agenda.remaining
        self.observer.sweep_started(self.folder, self.job, remaining)
        if not remaining:
            return None
        with self.limits, connected(address, self.job):
            self._run(remaining)
            if mended := mend(self.folder, self.job, self.fingerprints):
                self.observer.mended(mended)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return self.stopped

    def _run(self, remaining: int) -> None:
        import ray

        mailbox = self._start_mailbox()
        self._pause_again(ray.get(mailbox.replay.remote(self.folder.all_reports(), list(self.folder.trials()))))
        # What the rule decides on them at once waits in the mailbox for the listener.
        ray.get(mailbox.settle.remote())
        listener = _Listener(mailbox, self)
        listener.start()
        lanes = self._start_lanes(mailbox, remaining) if self.scale.isolation == "lane" else []
        tuner = self._tuner(mailbox)
        try:
            errors = tuner.fit().errors
        except BaseException:
            # Stop the listener before Ray goes away under it.
            listener.stop()
            # Where recording failed, the mailbox was killed, and what Tune raises is only a consequence of that.
            if self.error is not None:
                raise self.error from None
            raise
        listener.stop()
        if self.error is not None:
            raise self.error
        if errors:
            raise ClusterError(f"Ray Tune lost {len(errors)} trial clients: {errors[0]}")
        # Lanes return once no trial waits. To join them leaves no worker behind when Ray is shut down.
        ray.get(mailbox.close.remote())
        ray.get([lane.join.remote() for lane in lanes])

    def _start_mailbox(self) -> Any:
        import ray

        from raysweep.cluster.mailbox import CALLS, NAMESPACE, Mailbox

        # By name: workers and trial clients in other processes find it with ray.get_actor.
        actor = ray.remote(Mailbox).options(name=self.name, namespace=NAMESPACE, num_cpus=0, max_concurrency=CALLS)
        return actor.remote(self.scale.max_attempts, rule_of(self.job.spec.search), self.sharing)

    def _tuner(self, mailbox: Any) -> Any:
        import ray
        from ray import tune

        from raysweep.cluster.client import TrialClient
        from raysweep.cluster.searcher import SweepSearcher

        searcher = SweepSearcher(
            lanes=self.scale.lanes,
            propose=lambda: self._propose(mailbox),
            finished=self._finished,
            start=self._start,
            waiting=lambda: ray.get(mailbox.waiting.remote()),
            ended=self._ended,
        )
        # Without max_concurrent_trials, Tune keeps a single trial pending beside a searcher, and starts are serial.
        tune_config = tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,  # the searcher says when it is enough
            max_concurrent_trials=IN_HAND * self.scale.lanes,
            reuse_actors=True,
        )
        run_config = tune.RunConfig(
            name=self.name,
            storage_path=str(self.scratch),
            verbose=0,
            # A client has nothing to save: the phase store has the checkpoints that matter.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # A client that dies costs nothing: the next one reads on. Its trial goes on meanwhile.
            failure_config=tune.FailureConfig(max_failures=self.scale.max_attempts),
        )
        trainable = tune.with_resources(TrialClient, CLIENT_RESOURCES)
        return tune.Tuner(trainable, tune_config=tune_config, run_config=run_config)

    def _pause_again(self, paused: set[int]) -> None:
        """Register the trials that an earlier session left paused; the stopping rule decides whether they go on."""
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
        # A lane may lose its group at every attempt of every trial. The dispatcher counts attempts; Train must not
        # give up before it.
        failures = remaining * self.scale.max_attempts
        # The actor only starts Train and waits for it, so it needs no processor of its own. It starts again if its
        # process or node dies, and `join`, which may be under way then, is called once more.
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
        # Outside the lock: the call waits for the mailbox, and the listener needs the lock meanwhile.
        if proposal is None and never:
            ray.get(mailbox.never_run.remote(never))
        return proposal

    def _finished(self) -> bool:
        with self.news:
            return self.stopped is not None or self.agenda.finished

    def _start(self, proposal: Proposal) -> dict[str, Any]:
        plan = self._plan(proposal)
        with self.news:
            # A trial that was paused is in the set from its first time on a lane.
            self.recorded.discard(proposal.trial)
            self.recorder.start_trial(proposal, plan)
        config = {
            "trial": proposal.trial, "ticket": next(self.tickets), "plan": plan.to_json(), "mailbox": self.name,
        }  # fmt: skip
        if self.scale.isolation == "process":
            config["own_lane"] = {
                "config": self._lane_config(f"trial-{proposal.trial}").__dict__,
                "scale": self.scale.model_dump(),
                "storage": str(self.scratch),
                "max_failures": self.scale.max_attempts,
            }
        return config

    def _ended(self, trial: int) -> None:
        """Wait until the agenda knows that a trial is off its lane: what it proposes next may depend on it."""
        with self.news:
            self.news.wait_for(lambda: trial in self.recorded or self.error is not None)

    # On the listener's thread.

    def record(self, event: Event) -> None:
        """Record an event, and tell the agenda what follows from it."""
        with self.news:
            record(event, self.recorder, self.agenda)
            # The listener sets `stopped` before it interrupts. Without that, a worker did so: it could not write.
            if isinstance(event, SweepInterrupted) and self.stopped is None:
                self.stopped = event.reason
                self.error = DiskFullError(event.reason)
            if isinstance(event, OffLane):
                self.recorded.add(event.trial)
                self.news.notify_all()

    def fail(self, error: BaseException) -> None:
        """Note that no more events will be recorded, and wake the thread that waits for one."""
        with self.news:
            self.error = error
            self.news.notify_all()


class _Listener(threading.Thread):
    """Records the mailbox's events, and interrupts the sweep when a limit is reached."""

    def __init__(self, mailbox: Any, session: _Session) -> None:
        super().__init__(name="listener", daemon=True)
        self._mailbox = mailbox
        self._session = session
        self._done = threading.Event()

    def stop(self) -> None:
        """Stop listening. Each trial's client has returned, and it waited until the trial's last event was recorded."""
        self._done.set()
        self.join()

    def run(self) -> None:
        import ray

        reader: Reader[str] = Reader(write=lambda text: self._session.record(from_json(text)))
        try:
            while not self._done.is_set():
                reader.take(ray.get(self._mailbox.events.remote(reader.written, POLL_S)))
                if self._session.stopped is None and (reason := self._session.limits.reached()):
                    self._session.stopped = reason
                    ray.get(self._mailbox.interrupt.remote(reason))
        except ray.exceptions.RayError:
            # The cluster is gone. The main thread sees it too, and says so.
            return
        except Exception as error:
            self._session.fail(error)
            # A sweep that cannot be recorded must not go on: without its mailbox, every client and worker ends.
            ray.kill(self._mailbox)
