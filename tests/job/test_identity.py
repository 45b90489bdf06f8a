"""The hash of a job changes with all that can change what its trials are, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from support.jobs import checked_job
from support.sweeps import job_mapping

from raysweep.job.identity import CHANGEABLE, job_hash
from raysweep.job.jobfile import Job
from raysweep.job.paths import set_path

OTHER: dict[str, Any] = {
    "budget.hours": 3.0, "budget.flops": 1e12, "budget.disk_gb": 7.0, "search.trials": 9, "scale.lanes": 2,
    "scale.max_attempts": 5, "scale.checkpoint_every_steps": 10, "scale.keep": "best",
}  # fmt: skip


def job(**changes: Any) -> Job:
    content = job_mapping()
    for path, value in changes.items():
        set_path(content, path, value)
    return checked_job(content, "heads.yaml")


def test_a_job_that_was_stored_has_the_hash_of_the_one_that_was_written() -> None:
    """Stored, it has every default in it."""
    assert job_hash(checked_job(job().spec.resolved(), "job.yaml").spec) == job_hash(job().spec)


@pytest.mark.parametrize("limit", CHANGEABLE)
def test_a_limit_is_no_part_of_the_hash(limit: str) -> None:
    value = OTHER.get(limit, 7)
    assert job(**{limit: value}).spec != job().spec
    assert job_hash(job(**{limit: value}).spec) == job_hash(job().spec)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1), ("model.name", "gpt2-micro"), ("data.seq_len", 64), ("training.batch_size", 8),
        ("scale.workers", 2),        ("cycle.learn.lr", 1e-3), ("cycle.prune.strategy", "random"), ("search.seeds", 2),
        ("search.minimize", "perplexity"),
        ("search.space", {"cycle.learn.lr": {"choice": [1e-3, 2e-3]}}),
    ],
)  # fmt: skip
def test_all_else_is_part_of_the_hash(path: str, value: Any) -> None:
    assert job_hash(job(**{path: value}).spec) != job_hash(job().spec)
