"""Trials that share phases come to the same, bit for bit, as trials that share nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.helpers import run_all
from support.jobs import quick_plan

from raysweep.job.plan import TrialPlan
from raysweep.trial.store.phase_store import PhaseStore

SHORT = {"cycle__baseline__steps": 6, "cycle__learn__steps": 6, "cycle__learn__gate_warmup_steps": 3}


@pytest.mark.parametrize(
    ("common", "first", "second", "shared"),
    [
        ({"cycle__cycles": 1}, {}, {"cycle__learn__lr": 5e-3}, 4),
        pytest.param({"cycle__cycles": 2}, {}, {"cycle__level_escalation": 0.1}, 5, marks=pytest.mark.slow),
        pytest.param({}, {"cycle__cycles": 3}, {"cycle__cycles": 2}, 9, marks=pytest.mark.slow),
        ({"cycle__cycles": 2, "cycle__grow__init": "rewind"}, {}, {"cycle__level_escalation": 0.1}, 5),
    ],
)
def test_shared_is_equal_to_unshared(
    common: dict[str, Any], first: dict[str, Any], second: dict[str, Any], shared: int, tmp_path: Path
) -> None:
    plans = [quick_plan(**SHORT | common | own) for own in (first, second)]
    together = [run_all(plan, tmp_path / "together") for plan in plans]
    alone = [run_all(plan, tmp_path / f"alone-{at}") for at, plan in enumerate(plans)]
    assert len({phase.key for plan in plans for phase in plan.phases}) == sum(len(p.phases) for p in plans) - shared
    for ours, theirs in zip(together, alone, strict=True):
        assert [record.outcome() for record in ours] == [record.outcome() for record in theirs]
    for at, plan in enumerate(plans):
        assert_same_weights(plan, tmp_path / "together", tmp_path / f"alone-{at}")


def assert_same_weights(plan: TrialPlan, ours: Path, theirs: Path) -> None:
    """Check the weights and moments that the last phase left, and that they were trained at all."""
    mine, other = (PhaseStore(folder).tensors(plan.phases[-1].key) for folder in (ours, theirs))
    assert mine is not None and other is not None and mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
