"""Importing raysweep, and all that checks, plans and reports, costs nothing: no torch, ray, transformers or optuna."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raysweep import registry

HEAVY = ("torch", "ray", "transformers", "optuna")
CHECKS = ("errors", "registry", "spec", "space", "yamlfile", "jobfile", "plan", "records", "archive", "contracts")


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
from raysweep.jobfile import check_job
from raysweep.plan import Fingerprints, make_plan
job = {"name": "j", "model": {"name": "gpt2-nano"}, "cycle": {"baseline": {"steps": 1, "lr": 0.1},
       "prune": {"strategy": "taylor", "level": 0.5}, "grow": {"strategy": "balanced", "ratio": 0.5}},
       "search": {"space": {"cycle.prune.level": {"uniform": [0.1, 0.5]}}, "trials": 1}}
make_plan(check_job(job, "j.yaml").spec, {}, trial=1, fingerprints=Fingerprints(model="m", data="d"))
"""
    assert heavy_after(code) == []


@pytest.mark.parametrize("modules", [[f"raysweep.{name}" for name in CHECKS], ["raysweep.cli"]], ids=["checks", "cli"])
def test_light_modules_import_nothing_heavy(modules: list[str]) -> None:
    assert heavy_after(f"import {', '.join(modules)}") == []


@pytest.mark.parametrize("kind", ["prune", "grow", "init", "samplers", "schedulers", "exits"])
def test_strategies_import_nothing_heavy(kind: str) -> None:
    names = ", ".join(f"raysweep.{kind}.{name}" for name in registry.available(kind))
    assert heavy_after(f"import {names}") == []


def test_reports_import_neither_torch_nor_ray() -> None:
    code = """
import importlib, pkgutil, raysweep.reports
for module in pkgutil.iter_modules(raysweep.reports.__path__):
    importlib.import_module(f"raysweep.reports.{module.name}")
"""
    assert heavy_after(code) == []
