"""A wrong address is said plainly, before anything is written or started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.jobs import quick_job

from raysweep import api
from raysweep.cluster.connection import check_address
from raysweep.errors import ClusterError, UsageError


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "https://x", "ftp://x"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="Give host:port of the cluster's head"):
        check_address(address)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "closed"])
def test_a_wrong_address_leaves_no_folder(tmp_path: Path, address: str) -> None:
    with socket.socket() as probe:
        # Bound and not listening: nobody else can take the port meanwhile.
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}" if address == "closed" else address
        with pytest.raises((UsageError, ClusterError), match="--address"):
            api.run(quick_job(), address=address, results=tmp_path / "results")
    assert not (tmp_path / "results").exists()
