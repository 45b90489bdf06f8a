"""Events inside a learn phase: the discrete cycle where the schedule is degenerate, and more where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.helpers import cpu, run_all
from support.jobs import quick_plan
from support.planted import oldest_and_newest, one_grown_each_time

from raysweep.job.plan import TrialPlan
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.records.schema import PhaseRecord
from raysweep.trial.phases import _TrialRunner, run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.store.phase_store import PhaseStore
from raysweep.trial.training.loop import Training

LEARN = {
    "cycle__cycles": 1, "cycle__learn__new_head_lr_multiplier": 3.0, "cycle__learn__gate_warmup_steps": 3,
    "cycle__prune__level": 0.3, "cycle__grow__ratio": 0.4,
}  # fmt: skip
ONCE = {"cycle__continuous": {"every": 100, "events": 1}}
OFTEN = {
    "cycle__continuous": {"every": 3, "first": 2, "remove": 5, "grow": 2}, "cycle__learn__steps": 12,
    "cycle__learn__gate_warmup_steps": 6, "model__name": "gpt2-nano",
}  # fmt: skip


def continuous(**changes: Any) -> TrialPlan:
    return quick_plan(**LEARN | changes)


@pytest.mark.parametrize("model", ["gpt2-nano", "llama-nano"])
@pytest.mark.parametrize(
    "strategies", [("taylor", "gradient_sensitivity"), pytest.param(("random", "random"), marks=pytest.mark.slow)]
)
def test_one_event_before_the_first_step_is_the_discrete_cycle(
    model: str, strategies: tuple[str, str], tmp_path: Path
) -> None:
    """Bit for bit: decisions, curve, held-out numbers, weights and moments."""
    named = {"model__name": model, "cycle__prune__strategy": strategies[0], "cycle__grow__strategy": strategies[1]}
    discrete, single = continuous(**named), continuous(**named, **ONCE)
    expected, found = run_all(discrete, tmp_path / "discrete"), run_all(single, tmp_path / "single")
    assert [record.phase for record in found] == ["baseline", "learn"]
    events = found[-1].events
    assert events is not None
    for event, record in zip(events, expected[1:4], strict=True):
        assert event["step"] == 0
        content = record.to_dict()
        assert {name: content[name] for name in event if name != "step"} == {
            name: value for name, value in event.items() if name != "step"
        }
    last, reference = found[-1].to_dict(), expected[-1].to_dict()
    for name in ("loss", "curve", "trajectory", "head_map", "active_heads", "params", "samples", "accuracy"):
        assert last[name] == reference[name], name
    stores = PhaseStore(tmp_path / "single"), PhaseStore(tmp_path / "discrete")
    mine, theirs = (s.tensors(p.phases[-1].key) for s, p in zip(stores, (single, discrete), strict=True))
    assert mine is not None and theirs is not None and mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def often(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialPlan, Path, list[PhaseRecord]]:
    plan, folder = continuous(**OFTEN), tmp_path_factory.mktemp("often")
    return plan, folder, run_all(plan, folder)


Often = tuple[TrialPlan, Path, list[PhaseRecord]]


def test_events_happen_at_their_steps_with_their_counts(often: Often) -> None:
    events = often[2][-1].events
    assert events is not None
    assert [(event["step"], event["phase"], event["cycle"]) for event in events] == [
        (step, phase, cycle) for cycle, step in enumerate((2, 5, 8, 11), 1) for phase in ("prune", "measure", "grow")
    ]
    active = [event["active_heads"] for event in events]
    assert active == [27, 27, 29, 24, 24, 26, 21, 21, 23, 18, 18, 20]
    assert all(len(event["decision"]["heads"]) == 5 for event in events if event["phase"] == "prune")
    assert all("taylor" in event["statistics"] for event in events if event["phase"] == "measure")


def test_freshly_grown_heads_have_their_grace(often: Often) -> None:
    events = often[2][-1].events
    assert events is not None
    for before, after in zip(events[2::3], events[3::3], strict=False):
        grown, pruned = (set(map(tuple, event["decision"]["heads"])) for event in (before, after))
        assert not grown & pruned


def test_the_optimizer_is_carried_through(often: Often) -> None:
    """One run: step counts go on, moments of absent heads are zero, those of others are not."""
    plan, folder, records = often
    tensors = PhaseStore(folder).tensors(plan.phases[-1].key)
    assert tensors is not None
    steps = {float(value) for name, value in tensors.items() if name.endswith("/step")}
    assert steps == {float(plan.phases[0].steps + 12)}
    gates = [point["new_head_gate"] for point in records[-1].curve]
    assert gates[-1] < 1.0  # step 12 is the first after the last event: its heads are still fading in


@dataclass(frozen=True, kw_only=True)
class Doomed(Runtime):
    """Dies when a checkpoint inside the learn phase has been written."""

    partial: Path

    def barrier(self) -> None:
        if any(self.partial.glob("step-*")):
            raise InterruptedError


def lives(events: list[dict[str, Any]], steps: int) -> list[tuple[tuple[int, ...], int, int]]:
    """Return each head's slot, its birth, and the step before which it was pruned, or beyond the last."""
    found: list[tuple[tuple[int, ...], int, int]] = []
    born: dict[tuple[int, ...], int] = {}
    for event in events:
        slots = [tuple(slot) for slot in event.get("decision", {}).get("heads", [])]
        if event["phase"] == "grow":
            born |= dict.fromkeys(slots, event["step"])
        else:
            found += [(slot, born.pop(slot), event["step"]) for slot in slots if slot in born]
    return found + [(slot, birth, steps + 1) for slot, birth in born.items()]


def test_every_head_keeps_its_clock_whatever_later_events_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates as each forward pass finds them, multipliers as each step is given them."""
    gates: list[list[Any]] = []
    multipliers: list[dict[int, float]] = []
    step, accumulate = SliceAdamW.step, Training._accumulate

    def stepping(self: SliceAdamW, lr: float, given: Any) -> None:
        multipliers.append(given)
        step(self, lr, given)

    def accumulating(self: Training, wrapped: Any, number: int) -> Any:
        gates.append([None if gate.values is None else gate.values.tolist() for gate in self.state.model.gates])
        return accumulate(self, wrapped, number)

    monkeypatch.setattr("raysweep.strategies.prune.random.Pruner.__call__", one_grown_each_time())
    plan = continuous(**OFTEN, cycle__prune__grace_cycles=0, cycle__prune__strategy="random")
    baseline = plan.phases[0].steps
    monkeypatch.setattr(SliceAdamW, "step", stepping)
    monkeypatch.setattr(Training, "_accumulate", accumulating)
    events = run_all(plan, tmp_path)[-1].events or []
    lived = lives(events, 12)
    assert any(end <= 11 for _, _, end in lived), "some head must be pruned in mid-warm-up, or this shows too little"
    for number, (opened, given) in enumerate(zip(gates[baseline:], multipliers[baseline:], strict=True)):
        there = {slot: born for slot, born, end in lived if born <= number < end}
        assert given == pytest.approx(
            {born: 2 + math.cos(math.pi * (number - born) / (12 - born)) for born in there.values()}
        )  # of 3.0, over the rest of the phase
        for (layer, head), born in there.items():
            row = opened[layer]
            assert (1.0 if row is None else row[head]) == pytest.approx(min(1.0, 0.1 + 0.9 * (number - born) / 6))
    assert len(multipliers) == baseline + 12 and len(multipliers[-1]) > 1


def test_every_head_is_followed_from_its_birth_to_its_end(often: Often) -> None:
    learn = often[2][-1]
    seen: dict[tuple[int, ...], list[tuple[int, Any]]] = {}
    for point in learn.trajectory:
        for head in point["heads"]:
            seen.setdefault(tuple(head["slot"]), []).append((point["step"], head["update"]))
    lived = lives(learn.events or [], 12)
    assert len(lived) == 8
    for slot in {slot for slot, _, _ in lived}:
        its_own = [(born, end) for other, born, end in lived if other == slot]
        steps = [step for born, end in its_own for step in range(born, min(end, 13))]  # every 3: a look each step
        assert [step for step, _ in seen[slot]] == steps
        births = {born for born, _ in its_own}
        assert all((update is None) == (step in births) for step, update in seen[slot])
        assert all(update > 0 for _, update in seen[slot] if update is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ({"every": 9, "first": 3}, [3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21, 22, 23]),
        ({"every": 100, "first": 3}, [3, 5, 10, 15, 20, 23]),
    ],
)
def test_by_default_a_look_is_at_most_a_quarter_of_the_steps_to_the_next_event_away(
    events: dict[str, int], expected: list[int], tmp_path: Path
) -> None:
    """And births are points whatever the interval."""
    plan = continuous(**{"cycle__continuous": {"remove": 2, "grow": 1, **events}, "cycle__learn__steps": 23})
    assert [point["step"] for point in run_all(plan, tmp_path)[-1].trajectory] == expected


@pytest.mark.slow
def test_each_growth_says_when_its_slots_had_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysweep.strategies.grow.random.Grower.__call__", oldest_and_newest())
    plan = continuous(**OFTEN, cycle__grow__strategy="random", cycle__grow__init="rewind")
    gone: dict[tuple[int, ...], int] = {}
    waited = set()
    for event in run_all(plan, tmp_path)[-1].events or []:
        if event["phase"] == "prune":
            gone |= {tuple(slot): event["cycle"] for slot in event["decision"]["heads"]}
        if event["phase"] == "grow":
            assert event["regrown"] == [
                {"slot": slot, "pruned_in": gone[tuple(slot)], "grown_in": event["cycle"], "init": "rewind"}
                for slot in event["decision"]["heads"]
            ]
            waited |= {event["cycle"] - gone[tuple(slot)] for slot in event["decision"]["heads"]}
        else:
            assert "regrown" not in event
    assert len(waited) > 1  # some came back at once, some later


@pytest.mark.parametrize(
    "every",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.slow),
        pytest.param(5, marks=pytest.mark.slow),
        7,
    ],
)  # at step 7 two multipliers and two gates are on their way
def test_a_killed_run_goes_on_between_events_bit_for_bit(often: Often, every: int, tmp_path: Path) -> None:
    plan, folder, records = often
    killed = continuous(**OFTEN, **{"scale__checkpoint_every_steps": every})
    assert [phase.key for phase in killed.phases] == [phase.key for phase in plan.phases]
    store, deaths = PhaseStore(tmp_path), 0
    runtime: Runtime = Doomed(device=torch.device("cpu"), partial=tmp_path / f"{plan.phases[-1].key}.partial")
    try:
        list(run_trial(killed, runtime, store))
    except InterruptedError:
        deaths += 1
    partial = store.find_partial(plan.phases[-1].key)
    assert deaths == 1 and partial is not None
    assert {born for _, _, born in partial.structure["new_heads"]} == {step for step in (2, 5) if step < every}
    again = run_all(killed, tmp_path)
    assert [record.outcome() for record in again] == [record.outcome() for record in records]


def test_a_state_restored_after_events_has_their_head_map(often: Often) -> None:
    plan, folder, records = often
    trial = _TrialRunner.of(plan, cpu(), PhaseStore(folder))
    trial.skip(plan.phases[-1])
    assert trial._state().head_map.to_lists() == records[-1].head_map


def test_without_growth_heads_only_go(tmp_path: Path) -> None:
    records = run_all(continuous(**{"cycle__grow": None, "cycle__continuous": {"every": 2, "remove": 3}}), tmp_path)
    assert records[-1].active_heads == 16 - 3 * len([e for e in records[-1].events or () if e["phase"] == "prune"])
    assert not {event["phase"] for event in records[-1].events or ()} - {"prune", "measure"}
