"""What a trial learns, and from which examples; prepared once a process."""

from __future__ import annotations

from functools import lru_cache

from raysweep.contracts import Task
from raysweep.job.plan import TrialPlan
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.trial.data.examples import Dataset, build_task, load_dataset
from raysweep.trial.measures.evaluation import held_out_sha256


def trial_data(plan: TrialPlan) -> Dataset:
    """Return the examples of a trial."""
    return _data(DataSpec(**plan.data), ModelSpec(**plan.model))


def trial_task(plan: TrialPlan) -> Task:
    """Return what a trial's model learns."""
    return build_task(ModelSpec(**plan.model), trial_data(plan).facts)


def trial_held_out_sha256(plan: TrialPlan) -> str:
    """Return the hash of what every evaluation shows and asks: every held-out example is drawn for it."""
    return _held_out_sha256(DataSpec(**plan.data), ModelSpec(**plan.model))


@lru_cache(maxsize=4)
def _data(data: DataSpec, model: ModelSpec) -> Dataset:
    return load_dataset(data, model)


@lru_cache(maxsize=4)
def _held_out_sha256(data: DataSpec, model: ModelSpec) -> str:
    dataset = _data(data, model)
    return held_out_sha256(dataset.evaluation, build_task(model, dataset.facts))
