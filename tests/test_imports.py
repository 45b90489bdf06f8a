"""Importing raysweep, and all that checks, plans and reports, costs nothing: no torch, ray, transformers or optuna."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "transformers", "optuna")
LIGHT = ("job", "contracts", "records", "meta", "reports", "sweep", "strategies", "cli")
"""Rooms whose every module loads without any of these, but for those that they own."""
OWNED = {"sweep": ["optuna"]}
"""sweep/study.py holds the study that Optuna's samplers see."""


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


@pytest.mark.parametrize("room", LIGHT)
def test_every_module_of_a_light_room_imports_nothing_heavy(room: str) -> None:
    code = f"""
import importlib, pkgutil
import raysweep.{room} as room
for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
    importlib.import_module(module.name)
"""
    assert heavy_after(code) == OWNED.get(room, [])
