"""What a person reads of a plan: work, saving, time, memory and disk in words, and a tree of settings, not hashes."""

from __future__ import annotations

import copy
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from support.sweeps import JOB

from raysweep.reports.tables.estimate import print_estimate


def stage(
    phase: str, trials: int, next: list[Any] | None = None, steps: int = 0, arms: int = 0, **settings: Any
) -> dict[str, Any]:
    about = {"phase": phase, "settings": settings, "steps": steps, "trials": trials, "arms": arms, "key": "f00"}
    return {**about, "next": next or []}


ESTIMATE: dict[str, Any] = {
    "trials": 8, "foreseen": False, "phases": 40, "phases_shared": 31, "distinct": {"baseline": 1, "prune": 6},
    "steps": 2880, "steps_shared": 780, "parameters": 940_800, "seconds": 7200.0,
    "seconds_from": "31 phases of this model run before",
    "worker_memory_bytes": 2**30, "disk_bytes": 2**29, "example": [{"phase": "baseline"}, {"phase": "prune"}],
    "saving": "7 of 8 trials reuse 2 prefixes: 73% fewer steps", "stages": [stage("baseline", 8)],
    "data": {"classes": None, "splits": {}, "left_out": []},
}  # fmt: skip
SCALED_JOB = {
    **copy.deepcopy(JOB),
    "data": {"name": "python-docs", "seq_len": 128},
    "scale": {"lanes": 1, "workers": 2},
    "search": {"trials": 8},
}


def printed(job: Any = SCALED_JOB, **changes: Any) -> str:
    output = StringIO()
    print_estimate(job, {**ESTIMATE, **changes}, Console(file=output, width=10_000, _environ={}))
    return output.getvalue()


def tree(*stages: Any) -> list[str]:
    lines = printed(stages=list(stages)).splitlines()
    return [line.rstrip() for line in lines[next(at for at, line in enumerate(lines) if "disk" in line) + 1 : -1]]


def test_the_estimate_names_work_time_memory_and_disk() -> None:
    text = printed()
    for piece in (
        "gpt2-nano, 940,800 parameters", "8 on 1 lane of 2 workers", "40, of which 31 are run: 1 baseline, 6 prune",
        "780 instead of 2,880", "7 of 8 trials reuse 2 prefixes: 73% fewer steps",
        "about 2.0 h (from 31 phases of this model run before)", "about 1.0 GiB a worker",
        "about 0.50 GiB of checkpoints", "baseline → prune", "depends on the values that the sampler will pick",
    ):  # fmt: skip
        assert piece in text, piece


def test_one_trial_is_told_without_sharing_and_an_unknown_time_without_a_number() -> None:
    alone = {"trials": 1, "phases": 5, "phases_shared": 5, "steps": 360, "steps_shared": 360}
    job = {name: section for name, section in SCALED_JOB.items() if name != "search"}
    text = printed(job, **alone, seconds=None, seconds_from="no GPU here to judge by")
    assert "unknown (no GPU here to judge by)" in text
    assert all(word not in text for word in ("reuse", "instead", " nan", "drawn", "budget", "search"))


def test_repeats_on_other_seeds_are_told_apart() -> None:
    assert "14 on 1 lane of 2 workers; 8 of them search, 6 repeat the best on other seeds" in printed(trials=14)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"hours": 3.0}, "budget             hours 3"),
        ({"hours": 1.5}, "hours 1.5, too little: the sweep would stop before its end"),
        ({"hours": 3.0, "disk_gb": 0.5}, "hours 3; disk_gb 0.5, too little"),
        ({"flops": 1e15}, "flops 1e+15"),
    ],
)
def test_a_budget_stands_beside_what_is_needed(budget: dict[str, float], said: str) -> None:
    assert said in printed({**SCALED_JOB, "budget": budget})


def test_stages_in_a_row_stand_on_one_line_with_what_sets_them_apart() -> None:
    alone = [stage("learn", 1, steps=40)] * 3
    pruned = [
        stage("prune", 3, [stage("measure", 3, alone)], strategy="taylor", level=0.30000000000000004),
        stage("prune", 2, [stage("measure", 2, [stage("learn", 2, steps=40)])], strategy="random", level=0.5),
        stage("prune", 1, strategy="random", level=0.1),
    ]
    assert tree(stage("baseline", 6, pruned, steps=1500)) == [
        "baseline   1,500 steps   6 trials",
        "├── prune → measure   strategy taylor, level 0.3   3 trials   each alone from here",
        "├── prune → measure → learn   strategy random, level 0.5   40 steps   2 trials",
        "└── 1 trial alone",
    ]


def test_a_wide_tree_is_cut_and_says_what_is_left_out() -> None:
    wide = [stage("prune", 2, level=number / 100) for number in range(9)]
    lines = tree(stage("baseline", 18, wide))
    assert lines[1:4] == [f"├── prune   level {number / 100:g}   2 trials" for number in range(3)]
    assert lines[4:] == ["└── 6 more branches of 12 trials"]


def test_beginnings_of_their_own_are_shown_and_counted() -> None:
    seeds = [stage("baseline", 4, steps=10, seed=number) for number in range(6)]
    lines = tree(*seeds, stage("baseline", 1, seed=7))
    assert lines[0] == "baseline   seed 0   10 steps   4 trials"
    assert lines[-2:] == ["1 more branch of 4 trials", "1 trial alone"]


def test_a_plan_says_what_is_read_of_the_corpus() -> None:
    train = {"rows": 540, "origin": "a.csv", "repeated": 0, "sample": "a film\nlike a\tbath " * 9}
    data = {
        "classes": ["neg", "pos"],
        "splits": {
            "train": train,
            "choose": {"rows": 60, "origin": "b.csv", "repeated": 3, "sample": ""},
            "test": {"rows": 0, "origin": "the corpus has none", "repeated": 0, "sample": ""},
        },
        "left_out": ["notes.csv"],
    }
    lines = {line.split()[0]: " ".join(line.split()) for line in printed(data=data).splitlines()}
    assert lines["classes"] == "classes neg, pos" and lines["left"] == "left out notes.csv"
    assert lines["train"] == 'train 540 from a.csv: "a film like a bath a film like a bath a film like …"'
    assert (
        lines["choose"] == "choose 60 from b.csv, 3 of its parts stand in train, too" and lines["test"] == "test none"
    )


def test_control_arms_are_no_trials() -> None:
    """Eight trials share a baseline; each has three arms, of which one trains on in all trials alike."""
    branches = [stage("prune", 1, level=number / 10) for number in range(8)]
    arms = [stage("prune", 0, arms=1, level=number / 10) for number in range(16)]
    lines = tree(stage("baseline", 8, [*branches, *arms, stage("learn", 0, arms=8, steps=40)], steps=100))
    assert lines == [
        "baseline   100 steps   8 trials",
        "├── learn   40 steps   8 control arms",
        "└── 8 trials and 16 control arms alone",
    ]
    job = {**SCALED_JOB, "search": {"trials": 8, "controls": ["dense", "no_regrow"]}}
    assert "dense, no_regrow, beside each of 8 trials" in printed(job)
    assert "control" not in printed()


def test_points_that_are_known_are_not_called_those_that_will_be_picked() -> None:
    assert "that the sampler will pick." in printed()
    assert "counted from the very points that the search proposes." in printed(foreseen=True)
