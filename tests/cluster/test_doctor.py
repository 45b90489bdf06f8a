"""The doctor finds what is there, and calls what keeps a sweep from running bad; nothing breaks it down."""

from __future__ import annotations

import builtins
import os
import shutil
import socket
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from raysweep.cluster import doctor
from raysweep.cluster.doctor import Check, examine
from raysweep.records.environment import package_version

CHECKS = ["python", "packages", "processors", "gpus", "memory", "cache", "disk", "loopback", "hub"]
Disk = namedtuple("Disk", ("total", "used", "free"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def finding(what: str) -> Check:
    return next(found for found in examine() if found.what == what)


def test_nothing_is_bad_where_the_tests_run() -> None:
    findings = examine()
    assert [found.what for found in findings] == CHECKS
    assert {found.status for found in findings} <= {"ok", "note"}
    assert all(found.found for found in findings)


def test_packages_are_named_with_their_versions() -> None:
    assert "torch " in finding("packages").found
    assert "ray 2." in finding("packages").found


@pytest.mark.parametrize(("clone", "remedy"), [(True, "make install"), (False, "pip install raysweep")])
def test_a_missing_package_is_bad_and_named(monkeypatch: pytest.MonkeyPatch, clone: bool, remedy: str) -> None:
    monkeypatch.setattr(doctor, "is_clone", lambda: clone)
    monkeypatch.setattr(doctor, "package_version", lambda name: None if name == "optuna" else package_version(name))
    assert finding("packages") == Check("packages", "bad", f"not installed: optuna. Run '{remedy}'.")


def test_a_package_that_cannot_be_imported_is_bad_and_the_rest_is_still_examined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ImportError("libcudart.so.12: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(builtins, "__import__", broken)
    findings = examine()
    assert [found.what for found in findings] == CHECKS
    bad = [found for found in findings if found.status == "bad"]
    assert bad == [Check("gpus", "bad", "ImportError: libcudart.so.12: cannot open shared object file")]


def test_an_old_python_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert finding("python").status == "bad"
    assert "3.11 or newer is needed" in finding("python").found


def test_one_processor_is_noted_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1)
    assert finding("processors").status == "note"
    assert "--set scale.workers=1" in finding("processors").found


def test_too_little_memory_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 2**18)
    assert finding("memory") == Check("memory", "bad", "1.0 GiB; 4 are needed")


def test_a_cache_that_cannot_be_made_is_bad_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "file" / "cache"))
    assert finding("cache").status == "bad"
    assert "Not a directory" in finding("cache").found
    assert "set RAYSWEEP_CACHE" in finding("cache").found


def test_little_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**10, 9 * 10**9, 10**9))
    assert finding("disk") == Check("disk", "note", "1 GiB free here")


def test_a_loopback_that_cannot_be_used_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert finding("loopback").status == "bad"
    assert "Cannot assign requested address" in finding("loopback").found


@pytest.mark.parametrize(("answers", "status"), [(True, "ok"), (False, "note")])
def test_the_hub_is_asked_unless_that_is_forbidden(monkeypatch: pytest.MonkeyPatch, answers: bool, status: str) -> None:
    asked: list[Any] = []

    def connect(address: Any, timeout: float) -> socket.socket:
        asked.append(address)
        if not answers:
            raise TimeoutError
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    assert finding("hub").status == "note"
    assert "HF_HUB_OFFLINE is set" in finding("hub").found
    assert asked == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert finding("hub").status == status
    assert asked == [("huggingface.co", 443)]
