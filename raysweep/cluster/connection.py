"""Connect to Ray, and check that the cluster has room for a sweep."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raysweep.cluster.local_ray import LocalRay
from raysweep.cluster.token import keep_token_private
from raysweep.cluster.waiting import LOOK_S, Task, within
from raysweep.errors import ClusterError, Fault, SpecError, UsageError
from raysweep.job.jobfile import Job
from raysweep.job.outside import VARIABLE as MODULES
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
    # What a session ends with is said in one line, not in a trace of each call that was under way.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # The recorder writes the records and the TensorBoard runs.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Signals are the command line's, see sweep/signals.py: Ray's handler of SIGTERM would abort the driver after 3 s.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's snapshots are never restored: a resumed sweep starts from the archive.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment variables that Ray reads once, when it is imported."""
LOCAL_SETTINGS = {
    # With a token, as Ray has it for clusters of its own: whoever reaches one can run code.
    "RAY_AUTH_MODE": "token",
    # Workers at full priority.
    "RAY_worker_niceness": "0",
    **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
}
"""The same for a cluster on this machine alone."""
ANSWER_S = 10.0
"""How long a cluster may take to accept a connection, and to say what it has."""
START_S = 300.0
"""How long Ray may take to start, or to let a driver join."""
END_S = 5.0
"""How long the driver may take to leave Ray."""


def set_environment(address: str | None) -> None:
    """Set the variables that Ray reads; what the user has set stays."""
    for name, value in (SETTINGS | (LOCAL_SETTINGS if address is None else {})).items():
        os.environ.setdefault(name, value)
    if "ray._raylet" in sys.modules:
        # A program that uses Ray itself has imported it before, and it has read them.
        sys.modules["ray._raylet"].Config.initialize("")


def check_address(address: str) -> None:
    """Check that an address is one of a cluster, and that something listens there; Ray itself is not started.

    Raises:
        UsageError: it is an address of another kind.
        ClusterError: nothing listens there.
    """
    scheme, separator, _ = address.partition("://")
    if separator:
        kinds = {"ray": "of Ray's client", "http": "of a dashboard", "https": "of a dashboard"}
        kind = kinds.get(scheme, "of an unknown kind")
        raise UsageError(
            f"--address {address!r} (or RAY_ADDRESS) is {kind}, where no sweep can be run. "
            "Give host:port of the cluster's head, such as 10.0.0.1:6379, or auto on a machine of the cluster."
        )
    try:
        _check_answers(address)
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at --address {address!r} (or RAY_ADDRESS): {error}. Nothing was started."
        ) from error


def check_place(job: Job, address: str | None) -> None:
    """Check what can be known of the place where a job is to run before Ray is connected to it.

    Raises:
        SpecError: it needs more processors than this machine has.
        ClusterError: no cluster answers at the address.
    """
    if address is None:
        check_local_room(job)
    else:
        check_address(address)


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


class StoppedEarly(Exception):
    """The sweep was asked to stop while Ray was starting; there is nothing yet that could write a checkpoint."""


@contextmanager
def connected(address: str | None, job: Job, stopped: Callable[[], bool]) -> Iterator[Callable[[], str | None]]:
    """Connect to a cluster, or start one on this machine that ends with the sweep.

    Yields a function that returns which part of a cluster of our own has ended, None while all work.

    Args:
        stopped: returns whether the sweep was asked to stop; looked at while Ray starts.

    Raises:
        ClusterError: none could be started, none answers at the address, or the cluster gives no answer.
        SpecError: the cluster is too small for the job.
        StoppedEarly: see there.
    """
    import ray

    def look() -> None:
        if stopped():
            raise StoppedEarly

    common: dict[str, Any] = {"namespace": "raysweep", "log_to_driver": False, "logging_level": "ERROR"}
    own = _own_ray(common) if address is None else None
    try:
        if own is None:
            assert address is not None
            _connect(address, common, look)
        else:
            try:
                within(START_S, "the start of Ray", lambda: ray.init(_address_of(own), **common), look)
            except (RuntimeError, ClusterError, OSError, ValueError) as error:
                raise ClusterError(_not_started(error)) from error
        there = within(ANSWER_S, "the cluster's answer", ray.cluster_resources, look)
        check_room(job.spec.scale, cpus=there.get("CPU", 0), gpus=there.get("GPU", 0), source=job.source)
        yield own.ended if own is not None else lambda: None
    finally:
        # In a thread and for a limited time: where a part of Ray is dead or stopped, it may never return.
        end = Task("the end of Ray", ray.shutdown)
        end.join(END_S)
        if own is not None:
            own.end()


def _own_ray(common: dict[str, Any]) -> LocalRay:
    # Before Ray starts: it would make a token that everybody on this machine can read.
    keep_token_private()
    return LocalRay(_local_options() | common)


def _local_options() -> dict[str, Any]:
    # Ray replaces 127.0.0.1 by the address of the network card, but takes another loopback address as it is.
    loopback = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
    # num_cpus: this process may be bound to fewer processors than the machine has.
    return {"num_cpus": usable_cores(), "include_dashboard": False} | loopback


def _address_of(own: LocalRay) -> str:
    """Wait until a Ray of our own listens, and return where."""
    while (address := own.address()) is None:
        time.sleep(LOOK_S)
    return address


def _not_started(error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"Ray could not be started on this machine: {reason} If the machine is busy, try again; "
        "`raysweep doctor` says what it lacks; --address takes a cluster that runs already."
    )


def _connect(address: str, common: dict[str, Any], look: Callable[[], None]) -> None:
    import ray

    # Workers on other machines do not inherit the driver's environment.
    passed = {
        name: os.environ[name]
        for name in (*SETTINGS, "HF_HUB_OFFLINE", "RAYSWEEP_CACHE", MODULES)
        if name in os.environ
    }
    try:
        _check_answers(address)
        within(START_S, "the connection", lambda: ray.init(address, runtime_env={"env_vars": passed}, **common), look)
    except (OSError, RuntimeError, ValueError, ClusterError) as error:
        raise ClusterError(f"no Ray cluster answers at {address!r}: {error}") from error


def _check_answers(address: str) -> None:
    """Check that something listens at a `host:port`, since Ray itself would try for many minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
