"""Describe where a sweep runs: versions, machine, commit. It goes into env.json, beside the digests of the code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("raysweep", "ray", "torch", "transformers", "datasets", "tokenizers", "optuna", "numpy", "safetensors")


def describe() -> dict[str, Any]:
    """Return versions, machine, and the commit and uncommitted changes of raysweep's own checkout, if it is one."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "commit": commit(),
        "diff": _git("diff", "HEAD", "--", "raysweep"),
        "command": sys.argv,
    }


def package_version(name: str) -> str | None:
    """Return an installed package's version, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of raysweep's own checkout, None where it is none."""
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parents[2]  # raysweep/records/ -> the checkout
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, check=True, timeout=30,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
