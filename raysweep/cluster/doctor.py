"""Check what this machine can do, and what is missing for a sweep."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raysweep.job.shipped import is_clone
from raysweep.records.environment import PACKAGES, cpu_name, package_version, usable_cores

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """What was checked, and what was found."""

    what: str
    status: Literal["ok", "note", "bad"]
    """`bad` keeps the quickstart from running, `note` does not."""
    found: str


def examine() -> list[Check]:
    """Carry out all checks."""
    checks = (_python, _packages, _processors, _gpus, _memory, _cache, _disk, _loopback, _hub)
    return [_carry_out(check) for check in checks]


def _carry_out(check: Callable[[], Check]) -> Check:
    """Return the result of a check; an exception, as when a package cannot be imported, is a bad result."""
    # Any exception: the other checks should still be made, since they may show its cause.
    try:
        return check()
    except Exception as error:
        return Check(check.__name__.strip("_"), "bad", f"{type(error).__name__}: {error}")


def _python() -> Check:
    # pip refuses an older Python, but nothing keeps a clone from being run with one.
    good = sys.version_info >= (3, 11)
    return Check(
        "python", "ok" if good else "bad", sys.version.split()[0] + ("" if good else "; 3.11 or newer is needed")
    )


def _packages() -> Check:
    found = {name: package_version(name) for name in PACKAGES}
    missing = [name for name, number in found.items() if number is None]
    if missing:
        # A wheel brings its packages along; a clone has constraints, which `make install` keeps to.
        remedy = "make install" if is_clone() else "pip install raysweep"
        return Check("packages", "bad", f"not installed: {', '.join(missing)}. Run '{remedy}'.")
    return Check("packages", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _processors() -> Check:
    # Those that this process may use, which in a container or a batch job are fewer than the machine has.
    cores = usable_cores()
    note = "" if cores >= 2 else "; the quickstart wants 2: run it with --set scale.workers=1"
    return Check("processors", "ok" if cores >= 2 else "note", f"{cores} usable, {cpu_name()}{note}")


def _gpus() -> Check:
    # Imported here, inside a check: a broken torch is a finding, and must not keep the doctor from starting.
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("gpus", "ok" if names else "note", ", ".join(names) or "none; trials train on processors")


def _memory() -> Check:
    # Not every system can say how much memory it has.
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Check("memory", "note", "unknown on this system")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = total >= 4 * GIB
    return Check("memory", "ok" if enough else "bad", f"{total / GIB:.1f} GiB" + ("" if enough else "; 4 are needed"))


def _cache() -> Check:
    from raysweep.trial.data.cache import cache_folder

    folder = cache_folder()
    # Made now, as the first sweep would: a folder that can be made may still refuse files.
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Check("cache", "bad", f"{folder} cannot be made ({error.strerror}); set RAYSWEEP_CACHE")
    good = os.access(folder, os.W_OK)
    return Check(
        "cache", "ok" if good else "bad", f"{folder}" + ("" if good else " cannot be written; set RAYSWEEP_CACHE")
    )


def _disk() -> Check:
    # Here, where results/ would be written.
    free = shutil.disk_usage(Path.cwd()).free
    return Check("disk", "ok" if free >= 5 * GIB else "note", f"{free / GIB:.0f} GiB free here")


def _loopback() -> Check:
    # Ray replaces 127.0.0.1 by the address of the network card, where others could reach it; any other loopback address
    # it takes as it is. Only Linux answers on all of 127.0.0.0/8.
    address = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
    try:
        with socket.socket() as probe:
            probe.bind((address, 0))  # port 0: any that is free
    except OSError as error:
        return Check("loopback", "bad", f"{address} cannot be used ({error.strerror}); Ray is started on it")
    return Check("loopback", "ok", address)


def _hub() -> Check:
    # Offline is no fault: a model or corpus in the local cache is enough, and the embedded corpus needs no hub.
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return Check("hub", "note", "HF_HUB_OFFLINE is set: hub names work only from the local cache")
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError:
        return Check("hub", "note", "huggingface.co cannot be reached: hub names work only from the local cache")
    return Check("hub", "ok", "huggingface.co answers")
