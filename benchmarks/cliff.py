"""Count trials that fail behind a cliff: every sampler searches a space of which a part fails, best beside its edge.

    python -m benchmarks.cliff            # --only NAME for one sampler

Nothing is trained: the loss is a formula that falls up to a learning rate of 3e-3, behind which every trial diverges.
By chance 38% of the points lie there. The best points lie at the edge, where a sampler has most reason to go near it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Literal

from benchmarks.reference import Figure, figure, save, show
from raysweep.job import registry
from raysweep.job.jobfile import Job, load_job
from raysweep.records.schema import TrialRecord
from raysweep.sweep.study import Study

TRIALS, LAST = 64, 32
SEEDS = {"gp": 2}
"""A proposal of the Gaussian process takes a second."""
EDGE = 3e-3
RATE, LEVEL = "cycle.learn.lr", "cycle.prune.level"
SPACE: dict[str, Any] = {
    RATE: {"log_uniform": [1e-5, 1e-1]},
    LEVEL: {"uniform": [0.1, 0.6]},
    "cycle.grow.strategy": {"choice": ["gradient_sensitivity", "entropy_gap", "random"]},
}
CYCLE = {
    "baseline": {"steps": 300, "lr": 5e-3},
    "prune": {"strategy": "taylor", "level": 0.3},
    "grow": {"strategy": "random", "ratio": 0.5},
    "learn": {"steps": 60, "lr": 2e-3},
}
BLIND = ("quasi_random", "random")
"""Samplers that learn nothing from any result: the contrast."""
Unlike = Literal["one objective", "two objectives", "a constraint"]


def main(only: str | None) -> None:
    figures = []
    # A grid goes through all of its points, whatever becomes of them.
    for name in sorted(set(registry.available("samplers")) - {"grid"}):
        if only in (None, name):
            figures += of_sampler(name)
    if only is None:
        save("cliff", figures)
    for one in figures:
        show(one)


def of_sampler(name: str) -> list[Figure]:
    figures = []
    for search in searches(name):
        found = [failures(job_of(name, search, seed)) for seed in range(SEEDS.get(name, 6))]
        figures.append(
            figure(f"{name}, {search}: trials that diverge of the last {LAST}", [float(count) for count in found],
                   asked="(cannot learn)" if name in BLIND else "<= 8", unit="",
                   baseline=f"{0.38 * LAST:.0f} by chance")
        )  # fmt: skip
    return figures


def searches(name: str) -> list[Unlike]:
    """Return the kinds of search that a sampler can do."""
    cannot = registry.load("samplers", name).cannot
    lacking: dict[Unlike, str] = {"one objective": "", "two objectives": "objectives", "a constraint": "constraints"}
    return [search for search, feature in lacking.items() if feature not in cannot]


def job_of(name: str, search: Unlike, seed: int) -> Job:
    choices = "choice" not in registry.load("samplers", name).cannot
    space = {path: entry for path, entry in SPACE.items() if choices or "choice" not in entry}
    asked: dict[str, Any] = {"space": space, "trials": TRIALS, "sampler": {"name": name}}
    if search == "two objectives":
        asked["minimize"] = ["loss", "params"]
    if search == "a constraint":
        asked["constraints"] = ["params <= 1"]
    return load_job({"name": "cliff", "model": {"name": "gpt2-nano"}, "cycle": CYCLE, "search": asked, "seed": seed})


def failures(job: Job) -> int:
    """Search, and return how many of the last trials diverge."""
    study, count = Study(job, None), 0
    for trial in range(1, TRIALS + 1):
        values: dict[str, Any] | None = study.ask(trial)
        assert values is not None
        diverges = values[RATE] > EDGE
        count += diverges and trial > TRIALS - LAST
        study.tell(diverged(trial, values) if diverges else completed(job, trial, values), [])
    return count


def completed(job: Job, trial: int, values: Mapping[str, Any]) -> TrialRecord:
    loss = 4 - 0.5 * math.log10(values[RATE] / 1e-5) + (values[LEVEL] - 0.3) ** 2
    objectives = {"loss": loss, "params": 1 - values[LEVEL]}
    assert job.spec.search is not None
    return TrialRecord(
        trial=trial, status="COMPLETE", values=dict(values), seed=0, proposer="", objective=loss, objectives=objectives,
        violations=dict.fromkeys(job.spec.search.constraints, 0.2 - values[LEVEL]), attempts=1, phases=[], seconds=1.0,
    )  # fmt: skip


def diverged(trial: int, values: Mapping[str, Any]) -> TrialRecord:
    return TrialRecord(
        trial=trial, status="DIVERGED", values=dict(values), seed=0, proposer="", objective=None, attempts=1,
        phases=[], seconds=1.0, error="the loss is inf",
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[2] if "--only" in sys.argv else None)
