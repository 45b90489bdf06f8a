"""The stage tree: equal keys are one stage, each prefix is counted once, and what is saved is what is not run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from support.jobs import checked_job
from support.sweeps import JOB

from raysweep.job.plan import Fingerprints, TrialPlan, make_plan
from raysweep.job.stages import StageTree, as_dicts

FINGERPRINTS = Fingerprints(model="model", data="data")


def plan(trial: int, seed: int = 0, controls: tuple[str, ...] = (), cycles: int = 1, **values: Any) -> TrialPlan:
    """Plan a trial of 100 baseline and 40 learning steps; `prune_level` stands for cycle.prune.level."""
    job = copy.deepcopy(JOB)
    job["search"] = {"controls": controls}
    job["seed"] = seed
    job["cycle"]["cycles"] = cycles
    chosen = {"cycle." + name.replace("_", ".", 1): value for name, value in values.items()}
    return make_plan(checked_job(job, "job").with_values(chosen), chosen, trial=trial, fingerprints=FINGERPRINTS)


def test_one_trial_is_one_branch() -> None:
    tree = StageTree.of([plan(1)])
    [root] = tree.roots
    assert (root.label, root.steps, root.trials) == ("baseline", 100, [1])
    labels = []
    stage = root
    while stage.next:
        [stage] = stage.next
        labels.append(stage.label)
    assert labels == ["prune", "measure", "grow", "learn"]
    assert str(tree.saving) == "no trial begins like another"


def test_trials_part_where_their_settings_do() -> None:
    tree = StageTree.of([plan(1), plan(2, learn_lr=0.1), plan(3, prune_level=0.5), plan(4, prune_level=0.5)])
    [baseline] = tree.roots
    assert baseline.trials == [1, 2, 3, 4]
    first, second = baseline.next
    assert (first.trials, second.trials) == ([1, 2], [3, 4])
    [measure] = first.next
    [grow] = measure.next
    assert [stage.trials for stage in grow.next] == [[1], [2]]


def test_the_saving_counts_what_later_trials_find_done() -> None:
    tree = StageTree.of(
        [plan(1), plan(2, learn_lr=0.1), plan(3, learn_lr=0.2), plan(4, prune_level=0.5), plan(5, baseline_lr=1.0)]
    )
    saving = tree.saving
    assert (saving.trials, saving.reusing) == (5, 3)
    assert saving.prefixes == 2  # up to grow for trials 2 and 3; the baseline for trial 4
    assert saving.steps == 5 * 140
    assert saving.steps_shared == 2 * 100 + 5 * 40
    assert str(saving) == "3 of 5 trials reuse 2 prefixes: 43% fewer steps"


def test_deeper_cycles_are_deeper_prefixes() -> None:
    tree = StageTree.of([plan(1, cycles=1), plan(2, cycles=2), plan(3, cycles=3)])
    assert tree.saving.prefixes == 2
    assert tree.saving.steps == 140 + 180 + 220
    assert tree.saving.steps_shared == 220


def test_a_prefix_is_one_however_many_take_it_over() -> None:
    assert str(StageTree.of([plan(1), plan(2), plan(3)]).saving) == "2 of 3 trials reuse 1 prefix: 67% fewer steps"


def test_seeds_share_nothing_and_say_so() -> None:
    tree = StageTree.of([plan(1), plan(2, seed=1)])
    assert tree.saving.reusing == 0
    assert [stage["settings"] for stage in as_dicts(tree.roots)] == [{"seed": 0}, {"seed": 1}]


def test_control_arms_branch_off_and_count() -> None:
    tree = StageTree.of([plan(1, controls=("dense", "from_scratch_small")), plan(2, learn_lr=0.1)])
    baseline, small = tree.roots
    assert {stage.label: (stage.trials, stage.arms) for stage in baseline.next} == {
        "prune": ([1, 2], []), "learn": ([], [(1, "dense")]),
    }  # fmt: skip
    assert (small.label, small.steps, small.trials, small.arms) == ("baseline", 140, [], [(1, "from_scratch_small")])
    assert tree.saving.steps == (140 + 40 + 140) + 140
    assert tree.saving.steps_shared == 100 + 40 + 40 + 40 + 140


def test_a_trial_counts_once_where_its_arms_agree() -> None:
    tree = StageTree.of([plan(1, controls=("dense", "no_regrow"))])
    [baseline] = tree.roots
    assert (baseline.trials, baseline.arms) == ([1], [])


def test_siblings_are_told_apart_by_what_differs_and_the_most_shared_come_first() -> None:
    tree = StageTree.of([plan(1), plan(2, prune_level=0.5), plan(3, prune_level=0.5, prune_strategy="random")])
    tree.add(plan(4, prune_level=0.5))
    [baseline] = as_dicts(tree.roots)
    assert baseline["settings"] == {}
    assert [(stage["trials"], stage["settings"]) for stage in baseline["next"]] == [
        (2, {"strategy": "taylor", "level": 0.5}),
        (1, {"strategy": "taylor", "level": 0.3}),
        (1, {"strategy": "random", "level": 0.5}),
    ]


@pytest.mark.parametrize("trials", [1, 2])
def test_without_training_nothing_is_said_of_steps(trials: int) -> None:
    job = {"name": "x", "model": {"name": "gpt2-nano"}, "cycle": {"prune": {"strategy": "taylor", "level": 0.3}}}
    checked = checked_job(job, "job")
    plans = [make_plan(checked.spec, {}, trial=trial, fingerprints=FINGERPRINTS) for trial in range(trials)]
    said = str(StageTree.of(plans).saving)
    assert said == ("no trial begins like another" if trials == 1 else "1 of 2 trials reuses 1 prefix")
