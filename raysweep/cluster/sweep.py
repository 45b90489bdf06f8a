"""Run a sweep: Ray Tune asks the searcher for trials, thin clients hand them to lanes, events become records."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raysweep.archive import Proposal, SweepFolder
from raysweep.environment import usable_cores
from raysweep.errors import ClusterError, Fault, SpecError
from raysweep.jobfile import Job
from raysweep.plan import Fingerprints, make_plan
from raysweep.recorder import Observer, Recorder
from raysweep.spec import ScaleSpec

# Before ray is imported: it reads these once.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that is late must not start Ray again
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # how soon a dead worker is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # we write our own records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it must say how to go on
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # our archive is the truth for resume
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
LOCAL_SETTINGS = {"RAY_worker_niceness": "0", "GLOO_SOCKET_IFNAME": "lo"}
CLIENT_RESOURCES = {"memory": 1}  # a byte: Ray Tune insists on something, and all processors may belong to lanes
POLL_S = 1.0
ANSWER_S = 10.0


def run_sweep(
    folder: SweepFolder, job: Job, fingerprints: Fingerprints, *, address: str | None, sharing: bool, observer: Observer
) -> None:
    """Run every trial of a sweep that has no final record yet.

    Args:
        address: a reachable Ray cluster; None starts one here, for this sweep alone.
        sharing: whether trials share equal phases.

    Raises:
        SpecError: the cluster is smaller than what the job asks for.
        ClusterError: Ray gave up.
    """
    for name, value in (SETTINGS | (LOCAL_SETTINGS if address is None and sys.platform == "linux" else {})).items():
        os.environ.setdefault(name, value)
    _run(folder, job, fingerprints, address, sharing, observer)


def check_local_room(job: Job) -> None:
    """Check that a job fits on this machine.

    Raises:
        SpecError: more workers than processors.
    """
    check_room(job.spec.scale, cpus=usable_cores(), gpus=None, source=job.source)


def check_room(scale: ScaleSpec, *, cpus: float, gpus: float | None, source: str) -> None:
    """Check that all lanes fit at once; `gpus` None: not known yet.

    Raises:
        SpecError: they do not.
    """
    faults = []
    for kind, key, available in (("CPUs", "cpus_per_worker", cpus), ("GPUs", "gpus_per_worker", gpus)):
        needed = scale.lanes * scale.workers * getattr(scale, key)
        if available is not None and needed > available + 1e-9:
            faults.append(
                Fault(
                    file=source,
                    key="scale.workers",
                    value=scale.workers,
                    message=f"{scale.lanes} lanes x {scale.workers} workers x {getattr(scale, key):g} {kind} need "
                    f"{needed:g} {kind}, but there are {available:g}. Lower scale.lanes, scale.workers or scale.{key}.",
                )
            )
    if faults:
        raise SpecError(faults)


@contextmanager
def _connected(address: str | None, job: Job) -> Iterator[None]:
    """Connect to a cluster, or start one that ends with the sweep and listens on loopback."""
    import ray

    common: dict[str, Any] = {"namespace": "raysweep", "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        loopback = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
        ray.init("local", num_cpus=usable_cores(), include_dashboard=False, **loopback, **common)
    else:
        passed = {
            name: os.environ[name] for name in (*SETTINGS, "HF_HUB_OFFLINE", "RAYSWEEP_CACHE") if name in os.environ
        }
        try:
            _check_answers(address)
            ray.init(address, runtime_env={"env_vars": passed}, **common)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(f"no Ray cluster answers at {address!r}: {error}") from error
    try:
        there = ray.cluster_resources()
        check_room(job.spec.scale, cpus=there.get("CPU", 0), gpus=there.get("GPU", 0), source=job.source)
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Try a `host:port`; Ray itself would try for many minutes.

    Raises:
        OSError: nobody listens there.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()


def _run(
    folder: SweepFolder, job: Job, fingerprints: Fingerprints, address: str | None, sharing: bool, observer: Observer
) -> None:
    import ray
    from ray import tune

    from raysweep.cluster.client import TrialClient
    from raysweep.cluster.lane import Lane, LaneConfig
    from raysweep.cluster.mailbox import NAMESPACE, Mailbox
    from raysweep.cluster.searcher import SweepSearcher

    scale, name = job.spec.scale, f"{folder.name}-{uuid.uuid4().hex[:8]}"
    recorder = Recorder(folder, job, observer)
    scratch = folder.path / "ray"  # what Tune and Train insist on writing; nothing reads it
    own_lanes = scale.isolation == "process"

    def lane_config(lane: str) -> LaneConfig:
        return LaneConfig(name=lane, mailbox=name, store=str(folder.store), sharing=sharing)

    def start_trial(proposal: Proposal) -> dict[str, Any]:
        spec = job.with_values(proposal.values)
        plan = make_plan(spec, proposal.values, trial=proposal.trial, fingerprints=fingerprints)
        recorder.start_trial(proposal, plan)
        config = {"trial": proposal.trial, "plan": plan.to_json(), "mailbox": name}
        if own_lanes:
            config["own_lane"] = {
                "config": lane_config(f"trial-{proposal.trial}").__dict__,
                "scale": scale.model_dump(),
                "storage": str(scratch),
                "max_failures": scale.max_attempts,
            }
        return config

    searcher = SweepSearcher(folder, job, start_trial)
    remaining = searcher.remaining
    observer.sweep_started(folder, job, remaining)
    if not remaining:
        return
    with _connected(address, job):
        mailbox = ray.remote(Mailbox).options(name=name, namespace=NAMESPACE, num_cpus=0).remote(scale.max_attempts)
        lanes: list[Any] = []
        listener = _Listener(mailbox, recorder)
        listener.start()
        if not own_lanes:
            num_lanes = min(scale.lanes, remaining)
            ray.get(mailbox.expect_lanes.remote(num_lanes))
            failures = remaining * scale.max_attempts
            lane_actor = ray.remote(Lane).options(num_cpus=0, max_restarts=scale.max_attempts, max_task_retries=-1)
            lanes = [
                lane_actor.remote(lane_config(f"lane-{number}"), scale, scratch, failures)
                for number in range(num_lanes)
            ]
        tuner = tune.Tuner(
            tune.with_resources(TrialClient, CLIENT_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=searcher, num_samples=remaining, max_concurrent_trials=scale.lanes, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(scratch),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the phase store has what matters
            ),
        )
        try:
            errors = tuner.fit().errors
        except BaseException:
            listener.stop()  # before Ray goes away under it
            raise
        listener.finish(expect_all=not errors)
        if errors:
            raise ClusterError(f"Ray Tune lost {len(errors)} trial clients: {errors[0]}")
        ray.get(mailbox.close.remote())
        ray.get([lane.join.remote() for lane in lanes])
    shutil.rmtree(scratch, ignore_errors=True)


class _Listener(threading.Thread):
    """Hands the mailbox's events to the recorder; what goes wrong there ends the sweep."""

    def __init__(self, mailbox: Any, recorder: Recorder) -> None:
        super().__init__(name="listener", daemon=True)
        self._mailbox = mailbox
        self._recorder = recorder
        self._done = threading.Event()
        self._error: Exception | None = None

    def stop(self) -> None:
        """Listen no more, whatever is still to come."""
        self._done.set()
        self.join()

    def finish(self, expect_all: bool) -> None:
        """Wait until every started trial is recorded, then stop.

        Raises:
            Exception: whatever kept events from being recorded.
        """
        while expect_all and self.is_alive() and self._recorder.open_trials:
            self.join(0.02)
        self.stop()
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        import ray

        seen = 0
        try:
            while not self._done.is_set():
                events = ray.get(self._mailbox.events.remote(seen, POLL_S))
                for event in events:
                    self._recorder.handle(event)
                seen += len(events)
        except ray.exceptions.RayError:
            return  # the cluster is gone: the main thread sees it too, and says so
        except Exception as error:
            self._error = error
            ray.kill(self._mailbox)  # a sweep that cannot be recorded must not go on
