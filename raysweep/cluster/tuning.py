"""Ray Tune's side of a sweep: it asks for trials, and starts a thin client for each.

It runs on a thread of its own. The driver's thread records what happens, and tells here what follows from it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ray
import ray.tune

from raysweep.cluster.client import TrialClient
from raysweep.cluster.lane import LaneConfig
from raysweep.cluster.searcher import SweepSearcher
from raysweep.contracts.events import Event, OffLane, TrialFinished
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import ScaleSpec
from raysweep.records.schema import Proposal
from raysweep.sweep.admission import IN_HAND
from raysweep.sweep.agenda import Agenda
from raysweep.sweep.bookkeeping import record
from raysweep.sweep.keeping import Keeper
from raysweep.sweep.recorder import Recorder

CLIENT_RESOURCES = {"memory": 1}
"""A byte: Ray Tune insists on something, and all processors may belong to lanes."""


class Over(Exception):
    """The session has ended: Ray Tune must not go on."""


class Tuning:
    """Hands the trials of an agenda to Ray Tune.

    Args:
        plan_of: resolves a proposal.
        lane_of: returns the config of the lane that a trial has for itself; None where lanes are shared.
        name: the session's unique name, which is the mailbox's.
        storage: where Tune may write what nothing reads.
    """

    def __init__(
        self,
        agenda: Agenda,
        recorder: Recorder,
        keeper: Keeper,
        mailbox: Any,
        *,
        plan_of: Callable[[Proposal], TrialPlan],
        lane_of: Callable[[int], LaneConfig] | None,
        scale: ScaleSpec,
        name: str,
        storage: Path,
    ) -> None:
        self._agenda, self._recorder, self._keeper, self._mailbox = agenda, recorder, keeper, mailbox
        self._plan_of, self._lane_of, self._scale = plan_of, lane_of, scale
        self._name, self._storage = name, storage
        self._tickets = itertools.count(1)
        # Held by whoever uses the agenda; notified when a trial has left its lane, and when the session ends.
        self._news = threading.Condition()
        self._recorded: set[int] = set()
        """Trials off their lanes of which the agenda knows."""
        self._stopping = False
        self._over = threading.Event()

    # On the driver's thread.

    def record(self, event: Event) -> None:
        """Record an event, and tell the agenda what follows from it."""
        with self._news:
            record(event, self._recorder, self._agenda)
            # No trial is proposed meanwhile that would begin with what is removed.
            if isinstance(event, TrialFinished):
                self._keeper.ended()
            if isinstance(event, OffLane):
                self._recorded.add(event.trial)
                self._news.notify_all()

    def pause_again(self, paused: Iterable[int], proposals: dict[int, Proposal]) -> None:
        """Register the trials that an earlier session left paused; the stopping rule decides whether they go on."""
        with self._news:
            for trial in sorted(paused):
                self._recorder.start_trial(proposals[trial], self._plan_of(proposals[trial]))
                self._agenda.paused(trial)

    def propose_no_more(self) -> None:
        """Start no more trials: the sweep is asked to stop."""
        with self._news:
            self._stopping = True

    def end(self) -> None:
        """Have `fit` return soon, however far Tune has come."""
        self._over.set()
        with self._news:
            self._news.notify_all()

    # On Tune's thread.

    def fit(self) -> list[Exception]:
        """Run until there are no more trials; return what clients were lost of.

        Raises:
            Over: `end` was called.
        """
        return list(self._tuner().fit().errors)

    def _tuner(self) -> ray.tune.Tuner:
        searcher = SweepSearcher(
            lanes=self._scale.lanes,
            propose=self._propose,
            finished=self._finished,
            start=self._start,
            waiting=lambda: self._ask(self._mailbox.waiting.remote()),
            ended=self._ended,
        )
        # Without max_concurrent_trials, Tune keeps a single trial pending beside a searcher, and starts are serial.
        tune_config = ray.tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,  # the searcher says when it is enough
            max_concurrent_trials=IN_HAND * self._scale.lanes,
            reuse_actors=True,
        )
        run_config = ray.tune.RunConfig(
            name=self._name,
            storage_path=str(self._storage),
            verbose=0,
            # A client has nothing to save: the phase store has the checkpoints that matter.
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            # A client that dies costs nothing: the next one reads on. Its trial goes on meanwhile.
            failure_config=ray.tune.FailureConfig(max_failures=self._scale.max_attempts),
            callbacks=[_Watch(self._over)],
        )
        # It logs a trace for each client that dies, which is started again.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        trainable = ray.tune.with_resources(TrialClient, CLIENT_RESOURCES)
        return ray.tune.Tuner(trainable, tune_config=tune_config, run_config=run_config)

    def _propose(self) -> Proposal | None:
        with self._news:
            proposal = None if self._stopping else self._agenda.next()
            never = list(self._agenda.unproposed)
        # Outside the lock: the call waits for the mailbox, and the driver's thread needs the lock meanwhile.
        if proposal is None and never:
            self._ask(self._mailbox.never_run.remote(never))
        return proposal

    def _finished(self) -> bool:
        with self._news:
            return self._stopping or self._agenda.finished

    def _start(self, proposal: Proposal) -> dict[str, Any]:
        plan = self._plan_of(proposal)
        with self._news:
            # A trial that was paused is in the set from its first time on a lane.
            self._recorded.discard(proposal.trial)
            self._recorder.start_trial(proposal, plan)
        config = {
            "trial": proposal.trial, "ticket": next(self._tickets), "plan": plan.to_json(), "mailbox": self._name,
        }  # fmt: skip
        if self._lane_of is not None:
            config["own_lane"] = {
                "config": self._lane_of(proposal.trial).__dict__,
                "scale": self._scale.model_dump(),
                "storage": str(self._storage),
            }
        return config

    def _ended(self, trial: int) -> None:
        """Wait until the agenda knows that a trial is off its lane: what it proposes next may depend on it."""
        # For as long as the driver's thread, which records it, has not ended the session.
        with self._news:
            self._news.wait_for(lambda: trial in self._recorded or self._over.is_set())
        if self._over.is_set():
            raise Over

    def _ask(self, call: Any) -> Any:
        """Return the mailbox's answer, unless the session ends before it comes."""
        while not self._over.is_set():
            ready, _ = ray.wait([call], timeout=1.0)
            if ready:
                return ray.get(call)
        raise Over


class _Watch(ray.tune.Callback):
    """Ends Tune's loop from within: it has no other way to be told."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._over.is_set():
            raise Over

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune pickles its callbacks for a restore that raysweep never uses."""
        return {}
