"""One Ray cluster for all tests that need one: on loopback, with virtual processors, behind a token."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import psutil
import pytest

CPUS = 6
ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}
STRATEGIES = {"exits": "os._exit(1)", "raises": "raise RuntimeError('a fault of the strategy')"}


def free_port() -> int:
    """Return a port that nobody listens on: another Ray may hold the usual one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def deadly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put a package `deadly` of pruning strategies that never return where drivers and workers can import it."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "deadly").mkdir()
    (folder / "deadly" / "__init__.py").touch()
    for name, act in STRATEGIES.items():
        (folder / "deadly" / f"{name}.py").write_text(
            "import os\nfrom dataclasses import dataclass\n\n\n"
            "@dataclass(frozen=True, kw_only=True)\n"
            f"class Pruner:\n    def __call__(self, statistics, generator):\n        {act}\n"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("RAYSWEEP_MODULES", "deadly")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
        yield


@pytest.fixture(scope="session")
def ray_environment(deadly: None) -> Iterator[None]:
    """Set what every cluster of these tests inherits."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="session")
def cluster(ray_environment: None) -> Iterator[str]:
    """Return the address of a cluster of CPUS processors."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": CPUS, "node_ip_address": "127.0.0.2", "include_dashboard": True, "dashboard_port": free_port()}
    started = Cluster(initialize_head=True, head_node_args=head)
    processes = psutil.Process().children(recursive=True)
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield started.address
    finally:
        processes += [process for process in psutil.Process().children(recursive=True) if process not in processes]
        started.shutdown()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:  # helpers of Ray's dashboard, which take their time
            process.kill()
