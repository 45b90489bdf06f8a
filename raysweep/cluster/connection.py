"""Connect to Ray, and check that the cluster has room for a sweep."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raysweep.errors import ClusterError, Fault, SpecError
from raysweep.job.jobfile import Job
from raysweep.job.spec import ScaleSpec
from raysweep.records.environment import usable_cores

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A thread that is late, when the sweep has ended, must not start Ray again.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # How soon a dead worker is noticed; Ray's default is 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # One process less beside each lane; a lane that loses its node starts again like one that crashed.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Nothing reads Train's own metrics.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Relative paths of a job stay relative to the folder in which it was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The recorder writes the records and the TensorBoard runs.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C is the command line's: it says how to go on.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's snapshots are never restored: a resumed sweep starts from the archive.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment variables that Ray reads once, when it is imported."""
LOCAL_SETTINGS = {"RAY_worker_niceness": "0", "GLOO_SOCKET_IFNAME": "lo"}
"""The same for a cluster on this machine alone: workers at full priority, DDP on loopback."""
ANSWER_S = 10.0
"""How long a cluster may take to accept a connection."""


def check_local_room(job: Job) -> None:
    """Check that a job fits on this machine.

    Raises:
        SpecError: it needs more processors than there are.
    """
    check_room(job.spec.scale, cpus=usable_cores(), gpus=None, source=job.source)


def check_room(scale: ScaleSpec, *, cpus: float, gpus: float | None, source: str) -> None:
    """Check that the workers of all lanes fit at once.

    Args:
        gpus: None where their number is not known yet; then they are not checked.

    Raises:
        SpecError: they do not fit.
    """
    faults = []
    for kind, key, available in (("CPUs", "cpus_per_worker", cpus), ("GPUs", "gpus_per_worker", gpus)):
        needed = scale.lanes * scale.workers * getattr(scale, key)
        # With a margin: a product with a fraction, such as 100 x 0.07, can come out above the whole number.
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
    """Connect to a cluster, or start one on this machine that ends with the sweep.

    Raises:
        ClusterError: none could be started, or none answers at the address.
        SpecError: the cluster is too small for the job.
    """
    import ray

    common: dict[str, Any] = {"namespace": "raysweep", "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # Ray replaces 127.0.0.1 by the address of the network card, but takes another loopback address as it is.
        loopback = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
        try:
            # num_cpus: this process may be bound to fewer processors than the machine has.
            ray.init("local", num_cpus=usable_cores(), include_dashboard=False, **loopback, **common)
        # Ray raises plain exceptions of several kinds where a part of it does not answer in time.
        except Exception as error:
            ray.shutdown()  # or what was started before the failure would be left behind
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ClusterError(
                f"Ray could not be started on this machine: {reason} If the machine is busy, try again; "
                "`raysweep doctor` says what it lacks; --address takes a cluster that runs already."
            ) from error
    else:
        # Workers on other machines do not inherit the driver's environment.
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
    """Check that something listens at a `host:port`, since Ray itself would try for many minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
