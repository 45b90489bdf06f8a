"""Points that depend on no result are those that a sweep will propose, and a plan counts them exactly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from support.jobs import checked_job
from support.sweeps import JOB

from raysweep.job import registry
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, make_plan
from raysweep.job.stages import StageTree
from raysweep.records.schema import TrialRecord
from raysweep.sweep.foreseen import foreseen_points
from raysweep.sweep.study import Study

SPACE = {"cycle.learn.lr": {"choice": [1e-4, 1e-3]}, "cycle.prune.level": {"uniform": [0.1, 0.6], "step": 0.1}}


def job_of(sampler: str, space: Mapping[str, Any] = SPACE, trials: int = 9, **search: Any) -> Job:
    asked = {"space": dict(space), "trials": trials, "sampler": {"name": sampler}, **search}
    return checked_job({**copy.deepcopy(JOB), "search": asked}, "job.yaml")


@pytest.mark.parametrize("sampler", registry.available("samplers"))
def test_what_is_foreseen_is_proposed_whatever_the_results(sampler: str) -> None:
    able = {"strategy_bandit": {**SPACE, "cycle.prune.strategy": {"choice": ["taylor", "random"]}}}
    able["cmaes"] = {"cycle.prune.level": SPACE["cycle.prune.level"]}
    job = job_of(sampler, able.get(sampler, SPACE))
    points = foreseen_points(job)
    assert (points is not None) == (sampler in ("grid", "quasi_random", "random"))
    study = Study(job, None)
    for trial, values in enumerate(points or (), start=1):
        assert study.ask(trial) == values
        ended: dict[str, Any] = {"values": values, "seed": 0, "proposer": sampler, "attempts": 1, "phases": []}
        loss = float(trial % 3)
        study.tell(
            TrialRecord(
                trial=trial, status="COMPLETE", objective=loss, objectives={"loss": loss}, seconds=1.0, **ended
            ),
            [],
        )


def test_a_small_grid_is_counted_as_it_is() -> None:
    """Three points: a baseline of 100 steps, three prunes, and three learn phases of 40."""
    job = job_of("grid", {"cycle.prune.level": {"choice": [0.1, 0.2, 0.3]}}, trials=3)
    points = foreseen_points(job)
    assert points == [{"cycle.prune.level": level} for level in (0.1, 0.2, 0.3)]
    nowhere = Fingerprints(model="", data="")
    plans = [
        make_plan(job.with_values(values), values, trial=at, fingerprints=nowhere) for at, values in enumerate(points)
    ]
    tree = StageTree.of(plans)
    assert len(tree.by_key) == 1 + 3 * 4 and tree.saving.steps_shared == 100 + 3 * 40


def test_a_grid_that_ends_early_has_fewer_points_than_trials() -> None:
    assert len(foreseen_points(job_of("grid", trials=99)) or ()) == 12


def test_very_many_points_are_not_worked_out() -> None:
    assert foreseen_points(job_of("random", trials=5000)) is None
    assert foreseen_points(checked_job(JOB, "job.yaml")) is None
