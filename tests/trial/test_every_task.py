"""Each task from its data to its last phase, with the family that learns it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import cpu, run_all
from support.jobs import quick_plan

from raysweep.job.plan import TrialPlan
from raysweep.records.schema import PhaseRecord
from raysweep.trial.data.trial_data import trial_data, trial_task
from raysweep.trial.measures.evaluation import shared_batches
from raysweep.trial.phases import run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.store.phase_store import PhaseStore

NOUNS = {"good": "apple bread honey peace summer".split(), "bad": "rust mould fever war winter".split()}
PHASES = ["baseline", "prune", "measure", "grow", "learn"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write sentences whose last word tells their class."""
    generator = np.random.default_rng(0)
    lines = ["sentence\tlabel"]
    for _ in range(400):
        label = str(generator.choice(list(NOUNS)))
        lines.append(f"{'there was ' * int(generator.integers(1, 4))}{generator.choice(NOUNS[label])}\t{label}")
    path = tmp_path_factory.mktemp("table") / "all.tsv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def plan_for(model: str, **changes: Any) -> TrialPlan:
    return quick_plan(model__name=model, cycle__cycles=1, cycle__learn__steps=10, **changes)


def one_of(rank: int, ranks: int) -> Runtime:
    class OneOfMany(Runtime):
        @property
        def rank(self) -> int:
            return rank

        @property
        def world_size(self) -> int:
            return ranks

    return OneOfMany(device=torch.device("cpu"))


def accuracy_of(record: PhaseRecord) -> float:
    assert record.accuracy is not None
    return record.accuracy


def check(plan: TrialPlan, records: list[PhaseRecord], chance: float) -> None:
    """Check what holds of every task: heads go and come back, and the held-out loss falls below that of chance."""
    assert [record.phase for record in records] == PHASES
    assert [record.active_heads for record in records] == [32, 22, 22, 26, 26]
    baseline, prune, measure, grow, learn = records
    assert baseline.loss < chance and learn.loss < prune.loss
    assert prune.loss == measure.loss == pytest.approx(grow.loss, rel=1e-5)
    assert prune.params < grow.params < baseline.params
    assert prune.flops_per_token < grow.flops_per_token < baseline.flops_per_token
    assert all(0 <= accuracy_of(record) <= 1 for record in records)
    assert measure.statistics is not None
    present = np.array(measure.head_map) >= 0
    for rows in measure.statistics.values():
        scores = np.array(rows, dtype=np.float64)  # null where there is no head
        assert scores.shape == (4, 8) and np.array_equal(np.isfinite(scores), present)
    assert (np.array(measure.statistics["entropy"], dtype=np.float64)[present] <= 1).all()
    assert all((record.samples is not None) <= trial_task(plan).causal for record in records)


@pytest.mark.parametrize(
    "model",
    [
        "pythia-nano",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral-nano", "qwen2-nano", "qwen3-nano")),
    ],
)
def test_decoders_learn_text(model: str, tmp_path: Path) -> None:
    plan = plan_for(model, cycle__baseline__steps=15)
    records = run_all(plan, tmp_path)
    check(plan, records, chance=math.log(1024))
    assert all(sample["text"] for sample in records[-1].samples or [{"text": ""}])


@pytest.mark.parametrize("model", ["bert-nano", "roberta-nano"])
def test_encoders_learn_hidden_words(model: str, tmp_path: Path) -> None:
    # Longer windows than elsewhere: of sixteen tokens too few are hidden to learn from.
    plan = plan_for(model, cycle__baseline__steps=25, cycle__baseline__lr=2e-3, data__seq_len=32, data__eval_tokens=512)
    check(plan, run_all(plan, tmp_path), chance=math.log(1024))


@pytest.mark.parametrize("model", ["bert-nano", pytest.param("roberta-nano", marks=pytest.mark.slow)])
def test_encoders_learn_sentences(model: str, table: str, tmp_path: Path) -> None:
    plan = plan_for(
        model, model__task="sequence_classification", data__name=table, data__eval_tokens=10**5,
        training__batch_size=16, cycle__baseline__steps=40, cycle__baseline__lr=2e-3, cycle__learn__lr=1e-3,
    )  # fmt: skip
    records = run_all(plan, tmp_path)
    check(plan, records, chance=math.log(2))
    assert accuracy_of(records[0]) > 0.9


def test_images_are_told_apart(tmp_path: Path) -> None:
    plan = plan_for("vit-nano", data__name="digits", training__batch_size=32, cycle__baseline__steps=80)
    records = run_all(plan, tmp_path)
    check(plan, records, chance=math.log(10))
    assert accuracy_of(records[0]) > 0.4
    assert records[0].tokens == 80 * 32 * 17  # 16 patches and the class


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert-nano", pytest.param("vit-nano", marks=pytest.mark.slow)])
def test_a_trial_found_in_the_store_goes_on_as_one_that_never_stopped(model: str, tmp_path: Path) -> None:
    data = {"data__name": "digits"} if model == "vit-nano" else {}
    plan = plan_for(model, **data)
    first = run_all(plan, tmp_path / "one")
    store = PhaseStore(tmp_path / "two")
    running = run_trial(plan, cpu(), store)
    for _ in range(3):
        next(running)
    again = list(run_trial(plan, cpu(), store))
    assert [record.outcome() for record in again] == [record.outcome() for record in first]


def test_held_out_masks_are_the_same_at_any_number_of_ranks_and_in_any_batches() -> None:
    plan = plan_for("bert-nano")
    task, examples = trial_task(plan), trial_data(plan).evaluation

    def rows(batch_size: int, ranks: int) -> set[tuple[int, ...]]:
        found = []
        for rank in range(ranks):
            for batch in shared_batches(examples, batch_size, task, one_of(rank, ranks)):
                found += torch.cat([batch.inputs, batch.labels], 1).tolist()
        assert len(found) == len(examples)
        return set(map(tuple, found))

    assert rows(4, 1) == rows(3, 1) == rows(2, 2) == rows(5, 3)
