"""A job whose evaluations are too far apart for its stopping rule is warned of, with the setting that would do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from support.jobs import checked_job
from support.sweeps import JOB

LEARNING = {"cycle.learn.steps": {"integer": [30, 60], "step": 30}}


def warnings(every: int, stopping: dict[str, Any], space: Any = None, cycles: int = 1) -> list[str]:
    """Return the warnings of a job of 40 learning steps a cycle."""
    job = copy.deepcopy(JOB)
    job["training"] = {**job.get("training", {}), "evaluate_every": every}
    job["search"] = {"space": space or {"cycle.prune.level": {"choice": [0.2, 0.3]}}, "trials": 4, "stopping": stopping}
    job["cycle"]["cycles"] = cycles
    return [text for text in checked_job(job, "job.yaml").warnings if "evaluate_every" in text]


def test_evaluations_behind_the_first_rung_are_warned_of() -> None:
    [text] = warnings(10, {"name": "asha"})
    assert text == (
        "training.evaluate_every = 10: the first evaluation lies at 25.0% of a trial's compute, behind the first rung "
        "of asha at 11.1%, where no trial can be judged; set it to 4 or less."
    )
    assert warnings(4, {"name": "asha"}) == []


@pytest.mark.parametrize(
    ("every", "stopping", "warned"),
    [
        (10, {"name": "asha", "first": 0.25}, False),
        (11, {"name": "successive_halving", "first": 0.25}, True),
        (5, {"name": "hyperband"}, True),
        (4, {"name": "hyperband"}, False),
        (39, {"name": "hyperband", "brackets": 1}, False),
        (39, {"name": "median"}, False),
        (39, {"name": "patience"}, False),
        (39, {"name": "none"}, False),
    ],
)
def test_only_rules_with_a_rung_before_it_are_warned_of(every: int, stopping: dict[str, Any], warned: bool) -> None:
    assert bool(warnings(every, stopping)) == warned


def test_all_cycles_and_the_shortest_phase_of_the_space_count() -> None:
    assert warnings(8, {"name": "asha"}, cycles=2) == []
    assert warnings(4, {"name": "asha"}, LEARNING) and not warnings(3, {"name": "asha"}, LEARNING)
    [text] = warnings(1000, {"name": "asha", "first": 0.01})
    assert "at 100.0% of a trial's compute" in text and "train for more steps, or name a later first rung" in text
