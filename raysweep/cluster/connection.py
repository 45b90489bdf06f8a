"""Connect to Ray, and check that the cluster has room for a sweep."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raysweep.errors import ClusterError, Fault, SpecError
from raysweep.job.jobfile import Job
from raysweep.job.spec import ScaleSpec
from raysweep.records.environment import usable_cores

if TYPE_CHECKING:
    pass


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


ANSWER_S = 10.0


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
def connected(address: str | None, job: Job) -> Iterator[None]:
    """Connect to a cluster, or start one that ends with the sweep and listens on loopback."""
    import ray

    common: dict[str, Any] = {"namespace": "raysweep", "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        loopback = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
        try:
            ray.init("local", num_cpus=usable_cores(), include_dashboard=False, **loopback, **common)
        except Exception as error:  # Ray raises plain ones, where a part of it does not answer in time
            ray.shutdown()
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ClusterError(
                f"Ray could not be started on this machine: {reason} If the machine is busy, try again; "
                "`raysweep doctor` says what it lacks; --address takes a cluster that runs already."
            ) from error
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
