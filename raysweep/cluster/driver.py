"""Run a sweep: Ray Tune asks for trials, thin clients hand them to lanes, events become records.

The caller's thread owns every wait. It reads and records the mailbox's events, looks at the limits, at signals and at
Ray, and ends the session where anything gives no answer. All that may never return runs on a thread of its own.
"""

from __future__ import annotations

import shutil
import traceback
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raysweep.cluster.connection import StoppedEarly, connected, set_environment
from raysweep.cluster.waiting import Task
from raysweep.contracts.events import ClientSilent, Event, LaneSilent, LaneStarted, SweepInterrupted
from raysweep.errors import ClusterError, DiskFullError
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints
from raysweep.records.folder import SweepFolder
from raysweep.records.plans import plan_of
from raysweep.sweep import signals
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.keeping import Keeper
from raysweep.sweep.limits import Limits
from raysweep.sweep.mending import mend
from raysweep.sweep.observer import Observer
from raysweep.sweep.recorder import Recorder
from raysweep.sweep.stopping import rule_of
from raysweep.sweep.study import Study

if TYPE_CHECKING:
    from raysweep.cluster.lane import LaneConfig
    from raysweep.cluster.lane_actors import LaneActors
    from raysweep.cluster.post import Post
    from raysweep.cluster.tuning import Tuning

TUNE_END_S = 10.0
"""How long Ray Tune may take to notice that the session is over."""


def run_sweep(
    folder: SweepFolder, job: Job, fingerprints: Fingerprints, *, address: str | None, sharing: bool, observer: Observer
) -> str | None:
    """Run every trial of a sweep that has no final record yet.

    Args:
        address: a reachable Ray cluster; None starts one here, for this sweep alone.
        sharing: whether trials share equal phases.

    Returns:
        Why it stopped before its end, resumable: a budget, a signal, or a request to stop; None if it did not.

    Raises:
        SpecError: the cluster is smaller than what the job asks for.
        ClusterError: Ray could not be started or reached, or gave up.
    """
    set_environment(address)
    with signals.watched():
        return _Session(folder, job, fingerprints, sharing=sharing, observer=observer).run(address)


class _Session:
    """One driver's time with a sweep."""

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
        self.stopped: str | None = None
        """Why the sweep stops before its end."""
        self.error: DiskFullError | None = None
        """Why a worker interrupted it."""

    def run(self, address: str | None) -> str | None:
        study = Study(self.job, self.folder.path / "study.journal") if self.job.space else None
        self.agenda = Agenda(self.folder, self.job, study)
        self.limits = Limits(self.folder, self.job)
        remaining = self.agenda.remaining
        self.observer.sweep_started(self.folder, self.job, remaining)
        if not remaining:
            return None
        self.recorder = Recorder(self.folder, self.job, self.observer)
        self.keeper = Keeper(self.folder, self.job)
        with self.limits:
            try:
                with connected(address, self.job, lambda: self.limits.reached() is not None) as ended:
                    self._run(remaining, ended)
            except StoppedEarly:
                self.stopped = self.limits.reached()
            except Exception as error:
                if not is_of_ray(error):
                    raise
                raise ClusterError(f"Ray gave up: {one_line(error)}") from error
            self.keeper.collect()
            if mended := mend(self.folder, self.job, self.fingerprints):
                self.observer.mended(mended)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return self.stopped

    def _run(self, remaining: int, ended: Callable[[], str | None]) -> None:
        from raysweep.cluster.post import Post

        mailbox = self._start_mailbox()
        self.tuning = self._tuning(mailbox)
        post = Post(mailbox, lambda event: self._record(event, mailbox, post))
        paused = post.answer(mailbox.replay.remote(self.folder.all_reports(), list(self.folder.trials())))
        self.tuning.pause_again(paused, self.folder.proposals())
        # What the rule decides on them at once waits in the mailbox.
        post.answer(mailbox.settle.remote())
        self.lanes = self._lane_actors(mailbox, post, remaining)
        self.lanes.start()
        tune = Task("Ray Tune", self.tuning.fit)
        try:
            while tune.is_alive():
                post.turn()
                self._look(mailbox, post, ended)
        finally:
            # Before Ray goes away under it.
            self.tuning.end()
            tune.join(TUNE_END_S)
        errors = tune.result()
        if errors:
            raise ClusterError(f"Ray Tune lost {len(errors)} trial clients: {one_line(errors[0])}")
        post.empty()
        if self.error is not None:
            raise self.error
        self.lanes.end()

    def _look(self, mailbox: Any, post: Post, ended: Callable[[], str | None]) -> None:
        """Look at what can end the session, apart from its trials."""
        if (part := ended()) is not None:
            raise ClusterError(f"{part}.")
        if self.stopped is None and (reason := self.limits.reached()) is not None:
            self.stopped = reason
            self.tuning.propose_no_more()
            post.answer(mailbox.interrupt.remote(reason))
        self.lanes.look()

    def _record(self, event: Event, mailbox: Any, post: Post) -> None:
        import ray

        self.tuning.record(event)
        match event:
            case LaneStarted():
                self.lanes.came_up(event.lane)
            case LaneSilent() if event.lost:
                self.lanes.replace(event.lane, f"it was silent for {event.seconds:.0f} s")
            case ClientSilent():
                client = post.answer(mailbox.client_of.remote(event.ticket))
                # Tune starts it again, and it reads on.
                if client is not None:
                    ray.kill(client)
            # `_look` sets `stopped` before it interrupts. Without that, a worker did so: it could not write.
            case SweepInterrupted() if self.stopped is None:
                self.stopped, self.error = event.reason, DiskFullError(event.reason)
                self.tuning.propose_no_more()
            case _:
                pass

    def _start_mailbox(self) -> Any:
        import ray

        from raysweep.cluster.mailbox import CALLS, NAMESPACE, Mailbox

        # By name: workers and trial clients in other processes find it with ray.get_actor.
        actor = ray.remote(Mailbox).options(name=self.name, namespace=NAMESPACE, num_cpus=0, max_concurrency=CALLS)
        return actor.remote(
            self.scale.max_attempts, rule_of(self.job.spec.search), self.sharing, self.scale.lane_timeout
        )  # fmt: skip

    def _tuning(self, mailbox: Any) -> Tuning:
        from raysweep.cluster.tuning import Tuning

        own = self.scale.isolation == "process"
        return Tuning(
            self.agenda, self.recorder, self.keeper, mailbox,
            plan_of=lambda proposal: plan_of(self.job, proposal, self.fingerprints),
            lane_of=(lambda trial: self._lane_config(f"trial-{trial}")) if own else None,
            scale=self.scale, name=self.name, storage=self.scratch,
        )  # fmt: skip

    def _lane_actors(self, mailbox: Any, post: Post, remaining: int) -> LaneActors:
        import ray

        from raysweep.cluster.lane import Lane
        from raysweep.cluster.lane_actors import LaneActors

        # Where each trial has a lane of its own, its client starts it.
        number = min(self.scale.lanes, remaining) if self.scale.isolation == "lane" else 0
        # The actor only starts Train and waits for it, so it needs no processor of its own.
        actor = ray.remote(Lane).options(num_cpus=0)
        return LaneActors(
            [f"lane-{lane}" for lane in range(number)],
            lambda lane: actor.remote(self._lane_config(lane), self.scale, self.scratch),
            mailbox, post, self.scale.max_attempts,
        )  # fmt: skip

    def _lane_config(self, lane: str) -> LaneConfig:
        from raysweep.cluster.lane import LaneConfig

        return LaneConfig(
            name=lane, mailbox=self.name, store=str(self.folder.store), sharing=self.sharing,
            timeout_s=self.scale.lane_timeout,
        )  # fmt: skip


def is_of_ray(error: BaseException) -> bool:
    """Return whether Ray raised an error, of whatever class: not raysweep, and not an observer."""
    trace = traceback.walk_tb(error.__traceback__)
    # Where it was raised: Ray also calls us, so its frames alone say little.
    last = [frame.f_globals.get("__name__", "") for frame, _ in trace][-1:]
    return any(name.partition(".")[0] in ("ray", "grpc") for name in (type(error).__module__, *last))


def one_line(error: BaseException) -> str:
    """Return what an error says, without the trace that Ray writes into its messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # A failed call's message is the trace in the other process, whose last line is the error itself.
    return (lines[-1] if "ray::" in lines[0] or "Traceback" in str(error) else lines[0])[:300]
