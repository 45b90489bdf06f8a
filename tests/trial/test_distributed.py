"""Two ranks decide, train and measure as one: run once in real processes, then looked at from all sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import CAUSAL, cpu, head_map_without, held_out_loss, run_all, some_tokens, tiny_model
from support.jobs import quick_plan
from torch import distributed
from torch.multiprocessing.spawn import spawn

from raysweep.errors import DivergedError
from raysweep.job.plan import TrialPlan
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.plasticity.probe import probe
from raysweep.trial.acts import HeadMeter, grow
from raysweep.trial.data.trial_data import trial_data
from raysweep.trial.measures.evaluation import shared_batches
from raysweep.trial.phases import _TrialRunner, run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import PhaseStore

RANKS = 2
WINDOWS = some_tokens(7, 12, seed=5).numpy().astype(np.uint16)
STATISTICS = (
    "taylor",
    "entropy",
    "sink_mass",
    "output_norm",
    "magnitude",
    "sensitivity",
    "fisher",
    "sink_free_entropy",
)


def plan_of(**changes: Any) -> TrialPlan:
    """Odd numbers of held-out and probe windows, so that ranks never have equal shares."""
    return quick_plan(
        **{"cycle__cycles": 1, "data__eval_tokens": 15 * 32, "data__probe_windows": 5, "cycle__learn__steps": 12,
           "cycle__learn__gate_warmup_steps": 3, "scale__checkpoint_every_steps": 7} | changes
    )  # fmt: skip


PLANS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama, accumulated": {"model__name": "llama-nano", "training__accumulation": 2, "cycle__prune__level": 0.6},
    "events while training": {
        "cycle__cycles": 1, "cycle__continuous": {"every": 2, "remove": 4, "grow": 2}, "cycle__learn__steps": 6,
    },
    "entropies and chance": {"cycle__prune__strategy": "entropy", "cycle__prune__direction": "high",
                             "cycle__grow__strategy": "random", "cycle__grow__init": "small_random"},
    "gradmax, followed closely": {"cycle__grow__init": "gradmax", "cycle__grow__ratio": 1.0,
                                  "cycle__learn__trajectory_every": 2},
}  # fmt: skip


# What each rank does.


def in_two_processes(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS, timeout=timedelta(seconds=120)
    )
    found = {name: action(folder) for name, action in ACTIONS.items()}
    torch.save(found, folder / f"rank-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def run_trials(folder: Path) -> dict[str, Any]:
    found = {}
    for name, changes in PLANS.items():
        plan = plan_of(**changes)
        trial = _TrialRunner.of(plan, cpu(), PhaseStore(folder / name))
        records = [trial.record_of(phase).outcome() for phase in plan.phases]
        assert trial.state is not None
        digests = {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in trial.state.tensors().items()}
        found[name] = (json.dumps(records), digests)
    return found


class KilledError(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class Doomed(Runtime):
    """Dies with all ranks together once a checkpoint is there."""

    partial: Path

    def barrier(self) -> None:
        super().barrier()
        if self.partial.exists():
            raise KilledError


def kill_and_resume(folder: Path) -> Any:
    plan = plan_of()
    doomed = Doomed(device=torch.device("cpu"), partial=folder / "killed" / f"{plan.phases[-1].key}.partial")
    try:
        list(run_trial(plan, doomed, PhaseStore(folder / "killed")))
    except KilledError:
        distributed.barrier()
        return json.dumps([record.outcome() for record in run_all(plan, folder / "killed")])
    return "not killed"


def measure(_: Path) -> Any:
    losses = {}
    for dtype in (torch.float64, torch.float32):
        model = tiny_model("llama-gqa", dtype=dtype)
        losses[str(dtype)] = [held_out_loss(model, WINDOWS[:count], 3, cpu(), "fp32") for count in (7, 1)]
    return losses


def probe_absent_slots(_: Path) -> Any:
    model = tiny_model("llama-gqa")
    head_map = head_map_without(model, (0, 1), (1, 0), (1, 1), (1, 2))
    model.set_gates(head_map)
    statistics = probe(
        model, shared_batches(WINDOWS, 2, CAUSAL, cpu()), head_map, cpu().all_reduce, sensitivity="output"
    )
    return {name: getattr(statistics, name) for name in STATISTICS}


GROUPS = [(0, 0), (0, 1), (0, 2), (1, 4), (2, 3), (2, 4), (2, 5), (2, 8)]
"""Two whole groups of llama-gqa, and two heads of groups that live."""
GROWN_IN: dict[str, list[tuple[int, int]]] = {"gpt2": [(0, 1), (1, 0), (1, 2), (2, 1)], "llama-gqa": GROUPS}


def grow_by_gradmax(_: Path) -> Any:
    """Return for each model the heads that grew, the scores of all slots, and the first weights of every new slice."""
    found = {}
    for kind, slots in GROWN_IN.items():
        for dtype in (torch.float64, torch.float32):
            model = tiny_model(kind, dtype=dtype)
            optimizer = SliceAdamW(dict(model.network.named_parameters()), weight_decay=0.0)
            state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
            state.remove_heads(slots, None)
            state.refresh()
            meter = HeadMeter(batches=shared_batches(WINDOWS, 2, CAUSAL, cpu()), runtime=cpu())
            params = {"strategy": "gradient_sensitivity", "init": "gradmax", "count": len(slots) - 1}
            decision = grow(state, params, cycle=1, key="key", meter=meter)["decision"]
            found[kind, str(dtype)] = decision["heads"], np.array(decision["scores"]), state.changed_slices()
    return found


def talk(_: Path) -> Any:
    runtime = cpu()
    mine = torch.tensor([runtime.rank + 1.0, 10.0])
    told: dict[str, Any] = {
        "rank": (runtime.rank, runtime.world_size),
        "sum": runtime.all_reduce(mine).tolist(),
        "untouched": mine.tolist(),
        "gathered": runtime.all_gather(mine).tolist(),
        "from rank 0": runtime.from_rank_0({"rank": runtime.rank}),
    }
    runtime.assert_equal([(0, 1)])
    try:
        runtime.assert_equal([(0, runtime.rank)])
        told["agreed"] = True
    except AssertionError as error:
        told["agreed"] = str(error)
    return told


def diverge(folder: Path) -> str:
    try:
        run_all(plan_of(cycle__baseline__lr=1e6, cycle__baseline__steps=30), folder / "diverged")
    except DivergedError as error:
        return str(error)
    return "no error"


ACTIONS: dict[str, Callable[[Path], Any]] = {
    "trials": run_trials, "resumed": kill_and_resume, "losses": measure, "statistics": probe_absent_slots,
    "gradmax": grow_by_gradmax, "talk": talk, "divergence": diverge,
}  # fmt: skip


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    trial_data(plan_of())  # cached before both ask for it
    spawn(in_two_processes, args=(folder,), nprocs=RANKS)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The same trials on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        name: [record.outcome() for record in run_all(plan_of(**changes), folder / name)]
        for name, changes in PLANS.items()
    }


# How it looks.


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_decisions_records_weights_and_moments_are_equal_on_all_ranks(ranks: list[dict[str, Any]], name: str) -> None:
    (records, digests), (other_records, other_digests) = (rank["trials"][name] for rank in ranks)
    assert records == other_records
    assert digests == other_digests and any(key.startswith("optimizer/") for key in digests)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_one_rank_and_two_make_the_same_decisions_and_nearly_the_same_losses(
    ranks: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    two = json.loads(ranks[0]["trials"][name][0])
    for ours, theirs in zip(alone[name], two, strict=True):
        assert ours["head_map"] == theirs["head_map"]
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        for point, other in zip(ours["curve"], theirs["curve"], strict=True):
            assert other == pytest.approx(point, rel=1e-3)
        if ours["decision"]:
            assert ours["decision"]["heads"] == theirs["decision"]["heads"]
            np.testing.assert_allclose(theirs["decision"]["scores"], ours["decision"]["scores"], rtol=1e-2, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_new_heads_are_followed_alike_by_one_rank_and_by_each_of_two(
    ranks: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    one = alone[name][-1]["trajectory"]
    two, other_two = (json.loads(rank["trials"][name][0])[-1]["trajectory"] for rank in ranks)
    assert two == other_two
    assert [point["step"] for point in one] == [point["step"] for point in two] and len(one) >= 3
    for ours, theirs in zip(one, two, strict=True):
        assert [head["slot"] for head in ours["heads"]] == [head["slot"] for head in theirs["heads"]] != []
        for head, other in zip(ours["heads"], theirs["heads"], strict=True):
            known = [number for number in head if number != "slot" and head[number] is not None]
            assert known == [number for number in other if number != "slot" and other[number] is not None]
            assert len(known) >= 4  # all but the update at its birth
            assert [other[number] for number in known] == pytest.approx([head[number] for number in known], rel=1e-3)


@pytest.mark.slow
def test_two_ranks_grow_the_heads_of_one_with_its_weights_by_gradmax(ranks: list[dict[str, Any]]) -> None:
    """Each rank's own matrix has other singular vectors: they are added up before they are decomposed."""
    for name, (heads, scores, slices) in grow_by_gradmax(Path()).items():
        tolerance = 1e-10 if "64" in name[1] else 1e-5
        (first, first_scores, first_slices), (second, _, second_slices) = (rank["gradmax"][name] for rank in ranks)
        assert first == second == heads
        np.testing.assert_allclose(first_scores, scores, rtol=tolerance, err_msg=name)
        assert slices.keys() == first_slices.keys()
        for part, weights in slices.items():
            assert torch.equal(first_slices[part], second_slices[part])
            assert bool(weights.any()) == ("/output/" not in part and "bias" not in part)
            torch.testing.assert_close(first_slices[part], weights, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_a_trial_killed_on_all_ranks_resumes_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["resumed"] == ranks[0]["trials"]["gpt2"][0]


@pytest.mark.slow
def test_uneven_shares_of_held_out_windows_give_the_loss_of_one_rank(ranks: list[dict[str, Any]]) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-6)):
        model = tiny_model("llama-gqa", dtype=dtype)
        expected = [
            held_out_loss(model, WINDOWS[:count], 3, cpu(), "fp32") for count in (7, 1)
        ]  # one rank gets none of 1
        assert ranks[0]["losses"] == ranks[1]["losses"]
        assert ranks[0]["losses"][str(dtype)] == pytest.approx(expected, rel=tolerance)


@pytest.mark.slow
def test_uneven_shares_of_probe_windows_give_the_statistics_of_one_rank(ranks: list[dict[str, Any]]) -> None:
    expected = probe_absent_slots(Path())
    for name in STATISTICS:
        first, second = (rank["statistics"][name] for rank in ranks)
        assert np.array_equal(first, second), name
        np.testing.assert_allclose(first, expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_ranks_talk_to_each_other(ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(ranks):
        told = rank["talk"]
        assert told["rank"] == (number, 2)
        assert told["sum"] == [3.0, 20.0] and told["untouched"] == [number + 1.0, 10.0]
        assert told["gathered"] == [[1.0, 10.0], [2.0, 10.0]]
        assert told["from rank 0"] == {"rank": 0}
    assert ranks[0]["talk"]["agreed"] is True
    assert ranks[1]["talk"]["agreed"] == "rank 1 decided [(0, 1)], rank 0 [(0, 0)]"


@pytest.mark.slow
def test_divergence_is_seen_by_all_ranks_at_once(ranks: list[dict[str, Any]]) -> None:
    assert "the gradient norm" in ranks[0]["divergence"]
    assert ranks[0]["divergence"] == ranks[1]["divergence"]


def test_a_runtime_without_a_group_is_alone() -> None:
    runtime, tensor = cpu(), torch.tensor([1.5])
    assert (runtime.rank, runtime.world_size) == (0, 1)
    assert runtime.all_reduce(tensor) is tensor and runtime.all_gather(tensor).tolist() == [[1.5]]
    assert runtime.from_rank_0("mine") == "mine"
    runtime.barrier()
    runtime.assert_equal("anything")
    module = torch.nn.Linear(1, 1)
    assert runtime.wrap(module) is module
