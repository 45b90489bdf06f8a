"""Trials: what phases record is true, kills and shared prefixes change nothing, and strategies do as they are told."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.helpers import causal, cpu, run_all
from support.jobs import nano_plan, quick_plan

from raysweep.contracts import HEAD_STATISTICS, Decision
from raysweep.contracts.events import Event, PhaseResumed, Question, StepLogged
from raysweep.errors import DivergedError, TrialError
from raysweep.job.plan import TrialPlan
from raysweep.networks.plasticity.budget import share
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.surgery import absent_slices, snapshot
from raysweep.records.schema import PhaseRecord
from raysweep.trial.data.trial_data import trial_data
from raysweep.trial.phases import _TrialRunner, run_trial
from raysweep.trial.runtime import Runtime, go_on
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import Partial, PhaseStore

Slots = list[tuple[int, int]]


def outcomes(records: Sequence[PhaseRecord]) -> list[dict[str, Any]]:
    return [record.outcome() for record in records]


def restored(plan: TrialPlan, folder: Path, index: int = -1) -> TrialState:
    return TrialState.restored(
        plan, plan.phases[index].key, PhaseStore(folder), trial_data(plan).facts, cpu()
    )  # fmt: skip


@dataclass
class Listener:
    """Collects what a trial tells and asks; answers `go`, or what `answers` says to an event."""

    events: list[Event]
    answers: Callable[[Question], Decision] = go_on

    def runtime(self) -> Runtime:
        return Runtime(device=torch.device("cpu"), emit=self.events.append, ask_sweep=self.answer)

    def answer(self, question: Question) -> Decision:
        self.events.append(question)
        return self.answers(question)

    @property
    def points(self) -> list[tuple[str, int, float]]:
        return [(e.phase, e.cycle, e.point["step"]) for e in self.events if isinstance(e, StepLogged)]


@pytest.fixture
def planted_strategy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Build a strategy module outside the package, reached by a dotted name."""
    made: list[str] = []
    monkeypatch.setenv("RAYSWEEP_MODULES", "planted")

    def plant(kind: str, call: Callable[..., Any]) -> str:
        name = f"planted.strategy_{len(made)}"
        module = types.ModuleType(name)

        @dataclass(frozen=True, kw_only=True)
        class Strategy:
            forms: ClassVar[tuple[str, ...]] = ("gate",)
            needs: ClassVar[str] = "nothing"

            def __call__(self, *inputs: Any) -> Any:
                return call(*inputs)

        setattr(module, {"prune": "Pruner", "grow": "Grower", "init": "Initializer"}[kind], Strategy)
        sys.modules[name] = module
        made.append(name)
        return name

    yield plant
    for name in made:
        del sys.modules[name]


def remove(heads: Slots) -> Callable[..., np.ndarray]:
    """A pruner that wants to be rid of these heads, in this order."""

    def score(statistics: Any, _: Any) -> np.ndarray:
        scores = np.full(statistics.present.shape, 100.0)
        for rank, slot in enumerate(heads):
            scores[slot] = rank
        return scores

    return score


# Records.


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialPlan, Path, list[PhaseRecord]]:
    plan, folder = nano_plan(), tmp_path_factory.mktemp("quick")
    return plan, folder, run_all(plan, folder)


Quick = tuple[TrialPlan, Path, list[PhaseRecord]]


def test_a_trial_yields_one_record_a_phase_in_the_order_of_its_plan(quick: Quick) -> None:
    plan, _, records = quick
    assert [(r.phase, r.cycle, r.key) for r in records] == [(p.kind, p.cycle, p.key) for p in plan.phases]
    assert [r.phase for r in records] == ["baseline", *["prune", "measure", "grow", "learn"] * 2]
    assert all(r.trial == 1 and not r.reused and r.seconds > 0 for r in records)
    assert len({r.data_sha256 for r in records}) == 1 and records[0].data_sha256


def test_budgets_are_exact_and_head_maps_follow_from_decisions(quick: Quick) -> None:
    _, _, records = quick
    head_map = HeadMap.full(4, 8)
    for record in records:
        if record.phase == "prune":
            assert record.decision is not None and len(record.decision["heads"]) == share(0.3, 32) == 10
            head_map = head_map.without(map(tuple, record.decision["heads"]))
        if record.phase == "grow":
            assert record.decision is not None and len(record.decision["heads"]) == share(0.4, 10) == 4
            head_map = head_map.with_grown(map(tuple, record.decision["heads"]), record.cycle)
        assert record.head_map == head_map.to_lists()
        assert record.active_heads == head_map.active
    assert [record.active_heads for record in records] == [32, 22, 22, 26, 26, 16, 16, 20, 20]


def test_decisions_name_the_strategy_that_ran_and_the_scores_it_ranked(quick: Quick) -> None:
    _, _, records = quick
    for before, record in zip([None, *records], records, strict=False):
        if record.phase not in ("prune", "grow"):
            assert record.decision is None
            continue
        assert record.decision is not None and before is not None
        scores, heads = np.array(record.decision["scores"]), [tuple(head) for head in record.decision["heads"]]
        present = np.array(before.head_map) >= 0
        if record.phase == "prune":
            assert (record.decision["strategy"], record.decision["options"]) == ("taylor", {})
            protected = np.array(before.head_map) >= max(1, record.cycle - 1)  # grown in the cycle before
            free = sorted(zip(*np.nonzero(present & ~protected), strict=True), key=lambda slot: scores[slot])
            kept = present.copy()
            for slot in free:
                if slot in heads:
                    kept[slot] = False
                else:  # a better head stays only where its layer has no other left, or the budget is spent
                    assert kept[slot[0]].sum() == 1 or scores[slot] >= max(scores[head] for head in heads)
        else:
            assert record.decision["strategy"] == "gradient_sensitivity"
            assert record.decision["options"] == {"init": "zero_output"}
            absent = sorted(zip(*np.nonzero(~present), strict=True), key=lambda slot: -scores[slot])
            assert heads == [tuple(map(int, slot)) for slot in absent[:4]]
            assert (scores[present] == 0).all() and (scores[~present] > 0).all()


def test_the_scores_of_a_prune_are_the_statistics_of_the_model_before_it(quick: Quick) -> None:
    plan, folder, records = quick
    state = restored(plan, folder, 0)
    windows = trial_data(plan).train[: plan.data["probe_windows"]]
    statistics = probe(
        state.model, [causal(torch.from_numpy(windows.astype(np.int64)))], state.head_map, lambda tensor: tensor
    )
    assert records[1].decision is not None
    np.testing.assert_allclose(records[1].decision["scores"], statistics.taylor, rtol=1e-6)
    assert not np.allclose(statistics.taylor, statistics.magnitude, rtol=0.1)


def test_costs_fall_and_rise_with_the_heads(quick: Quick) -> None:
    _, _, records = quick
    for record in records:
        gone = 32 - record.active_heads
        assert record.params == records[0].params - gone * (4 * 128 * 16 + 3 * 16)
        assert record.flops_per_token == records[0].flops_per_token - gone * (2 * 4 * 128 * 16 + 4 * 16 * 16)


def test_zero_output_growth_and_measuring_leave_the_loss_alone_and_pruning_and_learning_do_not(quick: Quick) -> None:
    _, _, records = quick
    losses = {(r.phase, r.cycle): r.loss for r in records}
    for cycle in (1, 2):
        assert losses["measure", cycle] == losses["prune", cycle]
        assert losses["grow", cycle] == pytest.approx(losses["prune", cycle], rel=1e-6)
        assert abs(losses["learn", cycle] - losses["grow", cycle]) > 1e-3
    assert losses["prune", 1] != losses["baseline", 0]
    assert all(r.perplexity == pytest.approx(math.exp(r.loss)) for r in records)


def test_recorded_losses_are_those_of_the_stored_models_on_the_held_out_tokens(quick: Quick) -> None:
    plan, folder, records = quick
    windows = trial_data(plan).evaluation
    assert len(windows) == 8
    tokens = torch.from_numpy(windows.astype(np.int64))
    for index, record in enumerate(records):
        model = restored(plan, folder, index).model.eval()
        with torch.no_grad():
            log_probabilities = model(tokens)[:, :-1].double().log_softmax(-1)
        chosen = log_probabilities.gather(-1, tokens[:, 1:, None])
        assert record.loss == pytest.approx(-float(chosen.mean()), rel=1e-6), record.phase


def test_training_phases_have_curves_and_measured_ones_have_statistics_and_samples(quick: Quick) -> None:
    plan, _, records = quick
    data = trial_data(plan)
    assert data.tokenizer is not None
    prompts = [data.tokenizer().decode(window[:8].tolist()) for window in data.evaluation[:3]]
    for number, record in enumerate(records):
        trained = record.phase in ("baseline", "learn")
        assert [point["step"] for point in record.curve] == ([4.0] if trained else [])
        assert record.steps == (4 if trained else 0) and record.tokens == record.steps * 4 * 16
        assert (record.statistics is not None) == (record.phase in ("prune", "measure"))
        assert (record.samples is not None) == (record.phase in ("baseline", "measure", "learn"))
        if record.phase == "learn":
            assert {"new_head_gate", "new_head_multiplier"} <= set(record.curve[0])
        if record.statistics:
            assert set(record.statistics) == set(HEAD_STATISTICS)
            heads_of = records[number - 1] if record.phase == "prune" else record  # a prune's are those before it
            present = np.array(heads_of.head_map) >= 0
            for rows in record.statistics.values():
                assert [[value is not None for value in row] for row in rows] == present.tolist()
            assert all(np.array(rows).shape == (4, 8) for rows in record.statistics.values())
        if record.samples:
            assert [sample["prompt"] for sample in record.samples] == prompts
            assert all(sample["text"] for sample in record.samples)


def test_records_survive_json(quick: Quick) -> None:
    for record in quick[2]:
        assert PhaseRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_nothing_named_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    plan = nano_plan(cycle__baseline=None, cycle__grow=None, cycle__learn=None, cycle__cycles=1)
    baseline, prune, measure = run_all(plan, tmp_path)
    assert (baseline.phase, baseline.steps, baseline.curve, baseline.active_heads) == ("baseline", 0, [], 32)
    assert measure.loss == prune.loss != baseline.loss


# Determinism.


@pytest.mark.slow
def test_a_fresh_process_with_other_global_seeds_writes_the_same_records(quick: Quick) -> None:
    script = """
import json, random, tempfile
from pathlib import Path
import numpy, torch
from support.helpers import run_all
from support.jobs import nano_plan
for seed in (torch.manual_seed, numpy.random.seed, random.seed):
    seed(77)
with tempfile.TemporaryDirectory() as folder:
    print(json.dumps([record.outcome() for record in run_all(nano_plan(), Path(folder))]))
"""
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True, timeout=200,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert json.loads(done.stdout) == json.loads(json.dumps(outcomes(quick[2])))


def test_another_seed_is_another_trial(quick: Quick, tmp_path: Path) -> None:
    plan = nano_plan(seed=1)
    assert not {phase.key for phase in plan.phases} & {phase.key for phase in quick[0].phases}
    assert run_all(plan, tmp_path)[0].loss != quick[2][0].loss


# Kills: a trial that is killed inside a training phase and run again.


class KilledError(Exception):
    pass


class DyingStore(PhaseStore):
    """Dies right after writing one checkpoint."""

    def __init__(self, folder: Path, key: str, step: int) -> None:
        super().__init__(folder)
        self.last = (key, step)

    def save_partial(self, key: str, partial: Partial) -> None:
        super().save_partial(key, partial)
        if (key, partial.step) == self.last:
            raise KilledError


def long_plan(**changes: Any) -> TrialPlan:
    return quick_plan(
        **{"cycle__cycles": 1, "cycle__baseline__steps": 14, "cycle__learn__steps": 14,
           "cycle__learn__gate_warmup_steps": 7, "cycle__learn__new_head_lr_multiplier": 4.0,
           "scale__checkpoint_every_steps": 3} | changes
    )  # fmt: skip


def assert_same_stores(plan: TrialPlan, folder: Path, other: Path) -> None:
    for phase in plan.phases:
        ours, theirs = PhaseStore(folder).tensors(phase.key), PhaseStore(other).tensors(phase.key)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert set(ours) == set(theirs)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours), phase.label


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, list[PhaseRecord]]]:
    made: dict[str, tuple[Path, list[PhaseRecord]]] = {}

    def run(plan: TrialPlan) -> tuple[Path, list[PhaseRecord]]:
        if plan.phases[-1].key not in made:
            folder = tmp_path_factory.mktemp("uninterrupted")
            made[plan.phases[-1].key] = (folder, run_all(plan, folder))
        return made[plan.phases[-1].key]

    return run


@pytest.mark.parametrize(
    ("phase", "step", "changes"),
    [
        ("baseline", 3, {}),
        pytest.param("baseline", 12, {}, marks=pytest.mark.slow),
        pytest.param("learn", 6, {}, marks=pytest.mark.slow),  # within the warm-up of gates
        pytest.param("learn", 9, {}, marks=pytest.mark.slow),  # after it, the multiplier still falling
        pytest.param("learn", 12, {}, marks=pytest.mark.slow),  # past the first point of the curve
        ("learn", 6, {"training__accumulation": 2}),
        pytest.param(
            "learn", 3, {"model__name": "llama-nano", "cycle__grow__init": "small_random"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_trial_killed_at_a_checkpoint_ends_as_if_nothing_had_happened(
    phase: str, step: int, changes: dict[str, Any], tmp_path: Path, uninterrupted: Callable[..., Any]
) -> None:
    plan = long_plan(**changes)
    folder, records = uninterrupted(plan)
    key = next(p.key for p in plan.phases if p.kind == phase)
    with pytest.raises(KilledError):
        list(run_trial(plan, cpu(), DyingStore(tmp_path, key, step)))
    assert PhaseStore(tmp_path).find(key) is None
    listener = Listener([])
    resumed = run_all(plan, tmp_path, listener.runtime())
    steps_seen = [at for kind, _, at in listener.points if kind == phase]
    assert steps_seen == [at for at in (10.0, 14.0) if at > step]  # it did go on, not begin again
    assert [(e.phase, e.step) for e in listener.events if isinstance(e, PhaseResumed)] == [(phase, step)]
    assert outcomes(resumed) == outcomes(records)
    assert_same_stores(plan, tmp_path, folder)


def test_a_trial_killed_again_and_again_ends_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: Callable[..., Any]
) -> None:
    plan = long_plan()
    folder, records = uninterrupted(plan)
    for index in (0, 4):
        for step in (3, 6, 9, 12):
            with pytest.raises(KilledError):
                list(run_trial(plan, cpu(), DyingStore(tmp_path, plan.phases[index].key, step)))
    assert outcomes(run_all(plan, tmp_path)) == outcomes(records)
    assert_same_stores(plan, tmp_path, folder)


@pytest.mark.slow
def test_how_often_checkpoints_are_written_changes_nothing(tmp_path: Path, uninterrupted: Callable[..., Any]) -> None:
    folder, records = uninterrupted(long_plan())
    for every in (1, 1000):
        plan = long_plan(scale__checkpoint_every_steps=every)
        assert [p.key for p in plan.phases] == [p.key for p in long_plan().phases]
        assert outcomes(run_all(plan, tmp_path / str(every))) == outcomes(records)
        assert_same_stores(plan, tmp_path / str(every), folder)


def test_a_trial_killed_between_phases_goes_on_with_the_next(quick: Quick, tmp_path: Path) -> None:
    plan, folder, records = quick
    for length in range(1, 9):
        trial = run_trial(plan, cpu(), PhaseStore(tmp_path))
        assert [next(trial).outcome() for _ in range(length)] == outcomes(records[:length])
        trial.close()
    (tmp_path / ".part-left-behind").mkdir()
    again = run_all(plan, tmp_path)
    assert outcomes(again) == outcomes(records)
    assert [record.reused for record in again] == [False] * 9  # its own phases
    assert_same_stores(plan, tmp_path, folder)


# Sharing.


def test_a_trial_that_finds_everything_in_the_store_runs_nothing(quick: Quick) -> None:
    plan, folder, records = quick
    listener = Listener([])
    found = run_all(nano_plan(trial=2), folder, listener.runtime())
    assert outcomes(found) == outcomes(records)
    assert all(record.reused and record.trial == 2 for record in found)
    assert listener.points == []
    own = run_all(plan, folder, listener.runtime())
    assert outcomes(own) == outcomes(records) and not any(record.reused for record in own)
    assert listener.points == []


TAILS: list[dict[str, Any]] = [
    {},
    {"cycle__learn__lr": 1e-3},
    {"cycle__grow__strategy": "random"},
    {"cycle__prune__strategy": "random", "cycle__grow__strategy": "entropy_gap"},
]


@pytest.mark.slow
def test_trials_that_share_prefixes_record_what_they_would_have_recorded_alone(tmp_path: Path) -> None:
    plans = [quick_plan(trial=number, cycle__cycles=1, **tail) for number, tail in enumerate(TAILS)]
    alone = [run_all(plan, tmp_path / str(plan.trial)) for plan in plans]
    one_by_one = [run_all(plan, tmp_path / "shared") for plan in plans]
    store = PhaseStore(tmp_path / "interleaved")
    interleaved = list(zip_longest(*(run_trial(plan, cpu(), store) for plan in plans)))
    for number, records in enumerate(alone):
        assert outcomes(one_by_one[number]) == outcomes(records)
        assert outcomes([row[number] for row in interleaved]) == outcomes(records)
    assert [[r.reused for r in records] for records in one_by_one] == [
        [False] * 5, [True] * 4 + [False], [True] * 3 + [False] * 2, [True] + [False] * 4
    ]  # fmt: skip
    for plan in plans:
        assert_same_stores(plan, tmp_path / "shared", tmp_path / str(plan.trial))
        assert_same_stores(plan, tmp_path / "interleaved", tmp_path / str(plan.trial))


def test_trials_that_overtake_each_other_record_what_one_would_have_recorded_alone(
    quick: Quick, tmp_path: Path
) -> None:
    """They take turns in running a phase first, so each finds phases that are ahead of the state it holds."""
    _, _, records = quick
    trials = [run_trial(nano_plan(trial=number), cpu(), PhaseStore(tmp_path)) for number in (1, 2)]
    for index, expected in enumerate(records):
        leader, follower = trials if index % 2 else reversed(trials)
        first, second = next(leader), next(follower)
        assert first.outcome() == second.outcome() == expected.outcome()
        assert (first.reused, second.reused) == (False, True)


# Growth.


def test_an_init_that_leaves_heads_dead_fails_the_trial(tmp_path: Path, planted_strategy: Callable[..., str]) -> None:
    name = planted_strategy("init", lambda new: new.weights.zero_())
    plan = quick_plan(cycle__baseline=None, cycle__cycles=1, cycle__grow__init=name)
    with pytest.raises(TrialError, match=r"init 'planted\.strategy_0' makes heads \[.*\] that have no gradient at all"):
        run_all(plan, tmp_path)
    assert PhaseStore(tmp_path).find(plan.phases[3].key) is None


def test_the_form_asked_for_is_the_form_that_ranks(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [{}, {"cycle__grow__form": "output"}, {"cycle__grow__form": "gradmax"}]
    grown = [run_all(quick_plan(cycle__cycles=1, cycle__learn=None, **form), tmp_path)[3] for form in forms]
    default, output, gradmax = (record.decision for record in grown)
    assert default is not None and output is not None and gradmax is not None
    assert [d["form"] for d in (default, output, gradmax)] == ["output", "output", "gradmax"]
    assert output["scores"] != gradmax["scores"]
    assert gradmax["options"] == {"form": "gradmax", "init": "zero_output"}


def test_options_of_an_init_reach_it(tmp_path: Path) -> None:
    plans = [quick_plan(cycle__cycles=1, cycle__learn=None, cycle__grow__init="split", cycle__grow__noise=noise,
                        cycle__grow__ratio=1.0) for noise in (0.1, 2.0)]  # fmt: skip
    records = [run_all(plan, tmp_path)[3] for plan in plans]
    assert [r.decision["options"] for r in records if r.decision] == [
        {"init": "split", "noise": 0.1}, {"init": "split", "noise": 2.0}
    ]  # fmt: skip
    assert records[0].loss == pytest.approx(records[1].loss, rel=1e-5)
    first, second = (PhaseStore(tmp_path).slices(plan.phases[3].key) for plan in plans)
    both = set(first) & set(second)  # the new heads are the same ones: all that went come back
    assert any(not torch.equal(first[name], second[name]) for name in both)


@pytest.mark.parametrize("init", ["zero_output", "small_random", "split", "gradmax"])
@pytest.mark.parametrize("size", ["gpt2-nano", "llama-nano"])
def test_proposals_that_are_not_chosen_leave_no_trace(size: str, init: str, tmp_path: Path) -> None:
    plan = quick_plan(model__name=size, cycle__grow__init=init, cycle__cycles=1, cycle__prune__level=0.6)
    trial = _TrialRunner.of(plan, cpu(), PhaseStore(tmp_path))
    for phase in plan.phases[:3]:
        trial.record_of(phase)
    state = trial.state
    assert state is not None
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    trial.record_of(plan.phases[3])
    still = absent_slices(state.model.sites, state.head_map)
    chosen = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in before.items()}
    for part in state.changed:  # the new heads, and the donors of split ones
        chosen[f"model/{part.parameter}"].narrow(part.dim, part.start, part.length).fill_(True)
    assert still and any(bool(mask.any()) for mask in chosen.values())
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor[~chosen[name]], before[name][~chosen[name]]), name
    assert not any(weights.any() for weights in snapshot(state.model, still))  # absent heads are zero


def test_growing_nothing_back_is_the_same_as_not_growing_but_for_the_key(tmp_path: Path) -> None:
    nothing = run_all(quick_plan(cycle__grow__ratio=0.0, cycle__cycles=1), tmp_path)
    assert nothing[3].decision is not None and nothing[3].decision["heads"] == []
    assert nothing[3].head_map == nothing[2].head_map and nothing[3].loss == nothing[2].loss
    assert "new_head_gate" not in nothing[4].curve[0]


def test_what_is_grown_is_a_share_of_what_this_cycle_removed(tmp_path: Path) -> None:
    records = run_all(nano_plan(cycle__grow__ratio=1.0, cycle__prune__level=0.1), tmp_path)
    assert [record.active_heads for record in records] == [32, 29, 29, 32, 32, 29, 29, 32, 32]


@pytest.mark.parametrize("seeded", [True, False])
def test_new_slices_begin_learning_with_the_second_moments_of_their_peers_shared_keys_and_values_included(
    seeded: bool, tmp_path: Path, planted_strategy: Callable[..., str]
) -> None:
    """Two whole groups of two heads go, one returns: all four matrices of it come alive in the same layer."""
    gone: Slots = [(0, 2), (0, 3), (1, 4), (1, 5), (2, 0), (3, 1)]
    back: Slots = [(0, 2), (0, 3), (1, 4)]
    plan = quick_plan(
        model__name="llama-nano", cycle__cycles=1, cycle__prune__level=6 / 32, cycle__grow__ratio=0.5,
        cycle__baseline__steps=30, cycle__learn__seed_second_moments=seeded, cycle__learn__steps=1,
        cycle__prune__strategy=planted_strategy("prune", remove(gone)), cycle__learn__gate_warmup_steps=0,
        cycle__grow__strategy=planted_strategy("grow", lambda statistics, count, rng: back),
    )  # fmt: skip
    run_all(plan, tmp_path)
    state, tensors = restored(plan, tmp_path, 3), PhaseStore(tmp_path).tensors(plan.phases[-1].key)
    before = state.optimizer.state_tensors()
    assert tensors is not None and {part.role for part in state.new_slices} == {"query", "key", "value", "output"}
    for part in state.new_slices:
        name = f"{part.parameter}/exp_avg_sq"
        old, new = (m.unflatten(part.dim, (-1, part.length)).transpose(0, part.dim).flatten(1)
                    for m in (before[name], tensors[f"optimizer/{name}"]))  # fmt: skip
        of_peers = old.mean(1)[old.mean(1) > 0]  # heads that are absent or new have none
        seeded_with = float(of_peers.mean()) if seeded else 0.0
        found = new[part.start // part.length]
        if part.role == "output":
            assert (found.mean() > 0.99 * seeded_with) and found.any()
        else:  # no gradient yet: the output weights are zero
            torch.testing.assert_close(found, torch.full_like(found, 0.999 * seeded_with), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("grace", "returns"), [(0, False), (1, True), (2, True)])
def test_grown_heads_can_not_be_pruned_for_as_many_cycles_as_their_grace(
    grace: int, returns: bool, tmp_path: Path, planted_strategy: Callable[..., str]
) -> None:
    wanted: Slots = [(0, 0), (1, 1), (2, 2), (3, 3)]

    def wanted_first(statistics: Any, count: int, _: Any) -> Slots:
        absent = [(int(layer), int(head)) for layer, head in np.argwhere(~statistics.present)]
        return sorted(absent, key=lambda slot: (slot not in wanted, slot))[:count]

    plan = nano_plan(
        cycle__cycles=3, cycle__prune__level=4 / 32, cycle__grow__ratio=0.5, cycle__prune__grace_cycles=grace,
        cycle__prune__strategy=planted_strategy("prune", remove(wanted)), cycle__learn=None, cycle__baseline=None,
        cycle__grow__strategy=planted_strategy("grow", wanted_first),
    )  # fmt: skip
    records = run_all(plan, tmp_path)
    removed = [{tuple(h) for h in r.decision["heads"]} for r in records if r.phase == "prune" and r.decision]
    assert removed[0] == set(wanted)
    grown_first = {(0, 0), (1, 1)}
    assert (grown_first & removed[1] == set()) == returns
    assert (grown_first & removed[2] == set()) == (grace == 2)


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cycle__prune__level": 0.95}, "asked to remove 30 heads, but only 28 may go"),
        ({"cycle__prune__level": 0.5, "cycle__prune__min_heads_per_layer": 5}, "asked to remove 16 heads, but only 12"),
        ({"cycle__prune__level": 0.9, "cycle__prune__budget": "per_layer"}, "only 28 may go"),
    ],
)
def test_a_budget_that_can_not_be_met_fails_the_trial(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=message):
        run_all(nano_plan(cycle__baseline=None, **changes), tmp_path)


def test_a_per_layer_budget_reaches_the_cut(tmp_path: Path) -> None:
    plan = nano_plan(cycle__prune__budget="per_layer", cycle__prune__level=0.25, cycle__cycles=1, cycle__learn=None)
    prune = run_all(plan, tmp_path)[1]
    assert [row.count(-1) for row in prune.head_map] == [2, 2, 2, 2]


def test_scores_that_are_no_numbers_fail_the_trial(tmp_path: Path, planted_strategy: Callable[..., str]) -> None:
    name = planted_strategy("prune", lambda statistics, _: statistics.taylor * np.nan)
    with pytest.raises(TrialError, match="not finite"):
        run_all(quick_plan(cycle__baseline=None, cycle__prune__strategy=name), tmp_path)


@pytest.mark.parametrize("heads", [[(0, 0)], [(0, 0), (0, 0), (1, 1), (2, 2)], [(3, 3), (0, 0), (1, 1), (2, 2)]])
def test_growth_that_is_not_what_was_asked_fails_the_trial(
    heads: Slots, tmp_path: Path, planted_strategy: Callable[..., str]
) -> None:
    """Too few, one twice, one that is there."""
    gone: Slots = [(0, 0), (1, 1), (2, 2), (0, 1)]
    plan = nano_plan(
        cycle__prune__strategy=planted_strategy("prune", remove(gone)), cycle__prune__level=4 / 32,
        cycle__grow__strategy=planted_strategy("grow", lambda *_: heads), cycle__grow__ratio=1.0, cycle__baseline=None,
    )  # fmt: skip
    with pytest.raises(TrialError, match=r"'planted\.strategy_1' returned .* not 4 distinct absent slots"):
        run_all(plan, tmp_path)


def test_divergence_ends_the_trial_and_is_not_stored(tmp_path: Path) -> None:
    plan = quick_plan(cycle__learn__lr=1e6, cycle__learn__steps=30, cycle__cycles=1)
    trial, records = run_trial(plan, cpu(), PhaseStore(tmp_path)), []
    with pytest.raises(DivergedError):
        for record in trial:
            records.append(record.phase)
    assert records == ["baseline", "prune", "measure", "grow"]
    assert PhaseStore(tmp_path).find(plan.phases[-1].key) is None
    lease = PhaseStore(tmp_path).lease(plan.phases[-1].key)
    assert lease.take(), "it is free again"
    lease.release()


def test_a_plan_survives_json() -> None:
    assert asdict(TrialPlan.from_json(quick_plan().to_json())) == asdict(quick_plan())
