"""Sweeps of one trial, one for each family that has from-scratch sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.finished import finished_sweep

from raysweep.records.folder import SweepFolder

SIZES = ("gpt2-nano", "opt-nano", "llama-nano")


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session", params=SIZES)
def sweep(request: pytest.FixtureRequest, results: Path) -> SweepFolder:
    """Two cycles: heads of both are removed and grown. Groups of llama-nano lose unequally many."""
    return finished_sweep(results, request.param, model__name=request.param)


@pytest.fixture(scope="session")
def gpt2_sweep(results: Path) -> SweepFolder:
    return finished_sweep(results, "only-gpt2")
