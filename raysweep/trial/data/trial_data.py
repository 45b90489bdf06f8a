"""Return the examples and the task of a trial, loaded once a process.

A lane's worker runs trial after trial, and most trials of a sweep share their data: what was loaded for one trial is
kept for the next.
"""

from __future__ import annotations

from functools import lru_cache

from raysweep.contracts import Task
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.trial.data.examples import Dataset, build_task, load_dataset
from raysweep.trial.measures.evaluation import held_out_sha256


def trial_data(plan: TrialPlan) -> Dataset:
    """Return the examples of a trial."""
    # Specs are the key of the cache, not the plan, which differs in every trial.
    return _data(DataSpec(**plan.data), ModelSpec(**plan.model))


def trial_task(plan: TrialPlan) -> Task:
    """Return the task of a trial's model."""
    return build_task(ModelSpec(**plan.model), trial_data(plan).facts)


def trial_held_out_sha256(plan: TrialPlan) -> str:
    """Return the hash of the held-out inputs and labels of a trial; see `held_out_sha256`."""
    # All held-out examples are built for the hash, so it is computed once a process and not once a trial.
    return _held_out_sha256(DataSpec(**plan.data), ModelSpec(**plan.model))


@lru_cache(maxsize=4)
def _data(data: DataSpec, model: ModelSpec) -> Dataset:
    return load_dataset(data, model)


@lru_cache(maxsize=4)
def _held_out_sha256(data: DataSpec, model: ModelSpec) -> str:
    dataset = _data(data, model)
    return held_out_sha256(dataset.evaluation, build_task(model, dataset.facts))
