"""Pruning as a job asks for it: rounds that score anew, units, scores normalised by layer, the truth on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support.helpers import causal, cpu, run_all, some_tokens, tiny_model
from support.jobs import quick_plan

from raysweep.contracts import HEAD_STATISTICS
from raysweep.errors import TrialError
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.leave_one_out import contributions
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.ranking import agreement
from raysweep.networks.plasticity.surgery import view_of
from raysweep.records.schema import PhaseRecord
from raysweep.trial.acts import HeadMeter, prune
from raysweep.trial.data.trial_data import trial_data
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import PhaseStore


class State:
    """What `prune` needs of a trial's state."""

    def __init__(self, model: PlasticModel) -> None:
        self.model, self.head_map = model, HeadMap.full(*model.shape)
        self.reference_entropy: Any = None

    def remove_heads(self, heads: Any, entropy: Any) -> None:
        self.head_map, self.reference_entropy = self.head_map.without(heads), entropy


PARAMS = {"strategy": "contribution", "level": 4 / 9, "budget": "global", "normalize": "none", "rounds": 1,
          "unit": "head", "min_heads_per_layer": 1, "grace_cycles": 1, "contribution": False}  # fmt: skip


def pruned(kind: str = "gpt2", **changes: Any) -> tuple[State, dict[str, Any]]:
    params = {**PARAMS, **changes}
    state: Any = State(tiny_model(kind))
    meter = HeadMeter(batches=[causal(some_tokens(3))], runtime=cpu())
    return state, prune(state, params, cycle=1, key="key", meter=meter)["decision"]


def test_a_prune_leaves_every_score_of_every_head_that_was_there_before() -> None:
    model, batches, whole = tiny_model("gpt2"), [causal(some_tokens(3))], HeadMap.full(3, 3)
    meter = HeadMeter(batches=batches, runtime=cpu())
    asked = PARAMS | {"strategy": "taylor", "rounds": 4, "contribution": True}
    state: Any = State(model)
    found = prune(state, asked, cycle=1, key="key", meter=meter)
    assert set(found["statistics"]) == {*HEAD_STATISTICS, "contribution"}
    assert all(value is not None for rows in found["statistics"].values() for row in rows for value in row)
    truth = contributions(model, batches, whole).mean(0)
    np.testing.assert_allclose(found["statistics"]["contribution"], truth, rtol=1e-9)
    fisher = spearmanr(np.ravel(found["statistics"]["fisher"]), truth.ravel()).statistic
    assert found["agreement"]["fisher"]["global"] == pytest.approx(fisher)
    assert set(found["agreement"]) == set(HEAD_STATISTICS)
    again: Any = State(tiny_model("gpt2"))
    plain = prune(again, asked | {"contribution": False}, cycle=1, key="key", meter=meter)
    assert "agreement" not in plain and set(plain["statistics"]) == set(HEAD_STATISTICS)
    assert plain["decision"] == found["decision"]


def test_contribution_in_as_many_rounds_as_heads_is_greedy() -> None:
    state, decision = pruned(rounds=100)
    left, batches, expected = HeadMap.full(3, 3), [causal(some_tokens(3))], []
    for _ in range(4):
        costs = contributions(state.model, batches, left).mean(0)
        free = [slot for slot in np.argwhere(left.present).tolist() if left.present[slot[0]].sum() > 1]
        expected.append(min(free, key=lambda slot: costs[tuple(slot)]))
        layer, head = expected[-1]
        left = left.without([(layer, head)])
    assert decision["heads"] == expected
    assert state.head_map.to_lists() == left.to_lists()


def test_rounds_differ_from_one_shot_and_keep_the_entropy_of_before() -> None:
    (one, once), (many, rounds) = pruned(), pruned(rounds=4)
    assert {tuple(slot) for slot in once["heads"]} != {tuple(slot) for slot in rounds["heads"]}
    assert len(once["heads"]) == len(rounds["heads"]) == 4
    np.testing.assert_array_equal(one.reference_entropy, many.reference_entropy)
    assert np.isfinite(one.reference_entropy).all()
    first = tuple(rounds["heads"][0])
    assert rounds["scores"][first[0]][first[1]] == pytest.approx(once["scores"][first[0]][first[1]])


def test_layers_can_be_normalised_before_they_are_ranked() -> None:
    _, plain = pruned(strategy="taylor")
    _, normal = pruned(strategy="taylor", normalize="layer")
    raw, scaled = np.array(plain["scores"]), np.array(normal["scores"])
    np.testing.assert_allclose(scaled, raw / np.linalg.norm(raw, axis=1, keepdims=True))
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1.0)


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("unit", ["group", "equal"])
def test_units_go_whole_in_every_round(unit: str, rounds: int) -> None:
    state, decision = pruned("llama-gqa", strategy="taylor", level=12 / 27, unit=unit, rounds=rounds)
    present = state.head_map.present.reshape(3, 3, 3).sum(2)
    assert len(decision["heads"]) == 12
    assert set(present.ravel().tolist()) <= {0, 3} if unit == "group" else (present == present[:, :1]).all()


def test_a_layer_with_one_group_refuses_to_lose_it() -> None:
    with pytest.raises(TrialError, match="set cycle.prune.unit: head"):
        pruned("llama-mqa", strategy="taylor", level=5 / 15, unit="group")


def measure_of(records: list[PhaseRecord]) -> PhaseRecord:
    return next(record for record in records if record.phase == "measure")


def test_a_measure_records_the_truth_and_how_far_scores_agree_with_it_where_asked(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"cycle__cycles": 1, "cycle__grow": None, "cycle__learn": None, "cycle__baseline": None}
    asked = measure_of(run_all(quick_plan(**changes, cycle__measure={"contribution": True}), tmp_path / "a"))
    plain = measure_of(run_all(quick_plan(**changes), tmp_path / "b"))
    assert plain.agreement is None and "contribution" not in (plain.statistics or {})
    assert asked.statistics is not None and set(asked.statistics) == {*HEAD_STATISTICS, "contribution"}
    assert asked.agreement is not None and set(asked.agreement) == set(HEAD_STATISTICS)
    rows = {name: np.array(asked.statistics[name], dtype=float) for name in ("taylor", "contribution")}
    present = np.array(asked.head_map) >= 0
    assert np.array_equal(np.isnan(rows["taylor"]), ~present)
    assert asked.agreement["taylor"] == agreement(rows["taylor"], rows["contribution"], present)


def test_a_split_head_names_the_head_whose_copy_it_is(tmp_path: Path) -> None:
    plan = quick_plan(cycle__grow={"strategy": "random", "ratio": 1.0, "init": "split"})
    records = run_all(plan, tmp_path)
    at = next(index for index, record in enumerate(records) if record.phase == "grow")
    decision, before = records[at].decision, np.array(records[at - 1].head_map)
    assert decision is not None and len(decision["donors"]) == len(decision["heads"]) > 0
    facts = trial_data(plan).facts
    state = TrialState.restored(plan, plan.phases[at].key, PhaseStore(tmp_path), facts, cpu())
    parameters = dict(state.model.network.named_parameters())
    for child, donor in zip(decision["heads"], decision["donors"], strict=True):
        assert child[0] == donor[0] and before[tuple(donor)] >= 0 and before[tuple(child)] < 0
        copied, others = (
            [view_of(parameters, part) for part in state.model.sites[layer].head_slices(head) if part.role == "query"]
            for layer, head in (child, donor)
        )
        assert all(torch.equal(a, b) for a, b in zip(copied, others, strict=True))
    assert all("donors" not in (record.decision or {}) for record in records if record.phase == "prune")
