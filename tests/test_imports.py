"""Importing raysweep, and all that checks, plans and reports, costs nothing: no torch, ray, transformers or optuna."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "ray", "transformers", "optuna")
LIGHT = ("job", "contracts", "records", "meta", "reports", "strategies", "cli", "sweep")
"""Rooms whose every module loads without any of these. The last has Optuna: sweep/study.py holds the study that its
samplers see."""


def heavy_after(code: str) -> list[str]:
    """Return which heavy packages a fresh process holds after some code."""
    tail = f"\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_the_probe_sees_a_heavy_import() -> None:
    assert heavy_after("import optuna") == ["optuna"]


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert heavy_after("import raysweep") == []


def test_checking_and_planning_a_job_imports_nothing_heavy() -> None:
    code = """
from raysweep.job.jobfile import check_job
from raysweep.job.plan import Fingerprints, make_plan
job = {"name": "j", "model": {"name": "gpt2-nano"}, "cycle": {"baseline": {"steps": 1, "lr": 0.1},
       "prune": {"strategy": "taylor", "level": 0.5}, "grow": {"strategy": "balanced", "ratio": 0.5}},
       "search": {"space": {"cycle.prune.level": {"uniform": [0.1, 0.5]}}, "trials": 1}}
make_plan(check_job(job, "j.yaml").spec, {}, trial=1, fingerprints=Fingerprints(model="m", data="d"))
"""
    assert heavy_after(code) == []


def test_every_module_of_a_light_room_imports_nothing_heavy() -> None:
    # In one process, one room after the other: the first that holds something heavy is the one that imported it.
    code = f"""
import importlib, json, pkgutil, sys
held = {{}}
for room in {LIGHT}:
    package = importlib.import_module("raysweep." + room)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    held[room] = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(held))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == {room: ["optuna"] if room == "sweep" else [] for room in LIGHT}
