"""Heads of a module that serves at every step: one head acts, costs, is pruned and grows at all steps at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.finished import finished_sweep
from support.helpers import (
    RECURRENT,
    at,
    cpu,
    family_of,
    head_map_without,
    head_places,
    label_loss,
    parts_of,
    run_all,
    slots_in,
    some_batch,
    tiny_model,
    weights_of,
)
from support.jobs import quick_plan

from raysweep.contracts import Batch
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.networks.plasticity.accounting import active_parameters, flops_per_token, positions
from raysweep.networks.plasticity.compaction import compact
from raysweep.networks.plasticity.growth_probe import value_directions
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.insertion import Sources
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.plasticity.probe import probe
from raysweep.trial.data.trial_data import trial_data
from raysweep.trial.exports.finished import restore
from raysweep.trial.exports.load import load_model, load_whole
from raysweep.trial.exports.write import export
from raysweep.trial.phases import run_trial
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import PhaseStore

KINDS = (*RECURRENT, "pnn-layers")
ABSENT = ((0, 1), (1, 0), (1, 2), (2, 1))
LENGTH = 12


def logits(kind: str, model: PlasticModel) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(model, some_batch(kind))


# Importance.


def gate_at_each_step(model: PlasticModel, gates: torch.Tensor) -> list[Any]:
    """Multiply head outputs by gates of their own at each step, (steps, layers, heads); return the hooks."""
    steps = [0] * len(model.sites)

    def gate(layer: int, module: Any, inputs: Any) -> Any:
        site = model.sites[layer]
        heads = inputs[0].unflatten(-1, (site.num_heads, site.head_dim)) * gates[steps[layer], layer][:, None]
        steps[layer] += 1
        return (heads.flatten(-2),)

    return [
        site.projection.register_forward_pre_hook(partial(gate, layer)) for layer, site in enumerate(model.sites)
    ]  # fmt: skip


def gradients_by_step(model: PlasticModel, example: Batch) -> np.ndarray:
    """Return d loss / d gate of one example, (steps, layers, heads), every step having gates of its own."""
    gates = torch.ones(model.network.config.num_steps, *model.shape, dtype=torch.float64, requires_grad=True)
    hooks = gate_at_each_step(model, gates)
    label_loss(logits_of(model, example), example).backward()
    for hook in hooks:
        hook.remove()
    assert gates.grad is not None
    return gates.grad.numpy()


@pytest.mark.parametrize("kind", RECURRENT)
def test_importance_is_the_effect_of_a_gate_summed_over_the_steps(kind: str) -> None:
    model, batch = tiny_model(kind), some_batch(kind, 5)
    whole = HeadMap.full(*model.shape)
    by_step = np.stack([gradients_by_step(model, example) for example in parts_of(batch, 1)])
    found = probe(model, parts_of(batch, 2), whole, lambda tensor: tensor)
    summed = by_step.sum(1)
    np.testing.assert_allclose(found.taylor, np.abs(summed).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.fisher, (summed**2).mean(0), rtol=1e-5)
    alone = np.abs(by_step).mean(0)  # neither that of a single step nor the sum of magnitudes
    assert np.median(np.abs(found.taylor / alone - 1)) > 0.1 and (found.taylor < alone.sum(0)).all()


# Costs.


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_head_saves_its_products_at_every_step_and_its_weights_once(kind: str) -> None:
    model = tiny_model(kind)
    tokens = positions(model, LENGTH)
    whole, pruned = HeadMap.full(*model.shape), head_map_without(model, (0, 2))
    width, inner = model.network.config.hidden_size, model.sites[0].head_dim
    steps = model.network.config.num_steps if kind in RECURRENT else 1
    saved = flops_per_token(model, whole, tokens) - flops_per_token(model, pruned, tokens)
    assert saved == pytest.approx(steps * (2 * 4 * width * inner + 4 * tokens * inner), rel=1e-12)
    assert active_parameters(model, whole) - active_parameters(model, pruned) == 4 * width * inner + 3 * inner


# Growth.


def state_of(kind: str) -> TrialState:
    """Return a model that has learnt a little and lost some heads."""
    model = tiny_model(kind)
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.0)
    state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
    train(kind, state, 3)
    state.remove_heads(slots_in(model, ABSENT), None)
    state.refresh()
    return state


def train(kind: str, state: TrialState, steps: int, multiplier: float = 1.0) -> None:
    for step in range(steps):
        batch = some_batch(kind, 4, seed=step)
        label_loss(logits_of(state.model, batch), batch).backward()
        state.optimizer.step(0.01, {0: multiplier})
        state.optimizer.zero_grad()


def grow(kind: str, state: TrialState, initializer: str) -> list[tuple[int, int]]:
    batches, slots = [some_batch(kind, 4, seed=70)], slots_in(state.model, ABSENT[::2])
    taylor = probe(state.model, batches, state.head_map, lambda tensor: tensor).taylor
    directions = value_directions(state.model, batches, state.head_map, lambda tensor: tensor, causal=False)
    state.add_heads(slots, cycle=1)
    sources = Sources(taylor=taylor, stored=state.stored, directions=directions)
    state.initialise_new_heads(slots, registry.build("init", initializer), "key", sources)
    state.refresh()
    return slots


@pytest.mark.parametrize("initializer", ["zero_output", "gradmax", "split"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_does_nothing_at_birth_at_any_step_and_then_learns(kind: str, initializer: str) -> None:
    state = state_of(kind)
    before = logits(kind, state.model)
    slots = grow(kind, state, initializer)
    torch.testing.assert_close(logits(kind, state.model), before, rtol=0, atol=1e-12)
    weights = weights_of(state.model)
    train(kind, state, 3)
    for slot in slots:
        for role, (place, *_) in head_places(kind, state.model, *slot).items():
            name, dim, where = place
            moved = at(state.model, place) - weights[name].narrow(dim, where.start, len(where))
            assert (moved.abs() > 1e-6).float().mean() > 0.9, (slot, role)


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_directions_of_new_values_are_those_of_the_gradient_of_all_steps(kind: str) -> None:
    """Of a head that attends evenly and writes nothing, dL/dW_O is W_V M^T: autograd knows it of all steps at once."""
    model, batch = tiny_model(kind), some_batch(kind, 3)
    places = head_places(kind, model, 0, 1)
    for place in (*places["query"], *places["key"], places["value"][1], *places["output"]):
        at(model, place).zero_()
    (found, *_) = value_directions(model, [batch], head_map_without(model, (0, 1)), lambda tensor: tensor, causal=False)
    loss = torch.stack([label_loss(logits_of(model, example), example) for example in parts_of(batch, 1)]).mean()
    (name, _, columns), values = places["output"][0], at(model, places["value"][0])
    (gradient,) = torch.autograd.grad(loss, model.network.get_parameter(name))
    gradient = gradient[:, columns.start : columns.stop]
    squares = found.vectors.T @ (found.gains[:, None] * found.vectors)  # M^T M
    torch.testing.assert_close(gradient.T @ gradient, values @ squares @ values.T, rtol=1e-6, atol=1e-12)
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_head_comes_back_as_it_was(kind: str) -> None:
    model = tiny_model(kind)
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.0)
    state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
    before, weights = logits(kind, model), weights_of(model)
    state.remove_heads(slots_in(model, ABSENT), None)
    state.refresh()
    assert not torch.allclose(logits(kind, model), before)
    slots = slots_in(model, ABSENT)
    state.add_heads(slots, cycle=1)
    state.initialise_new_heads(slots, registry.build("init", "rewind"), "key", Sources(stored=state.stored))
    state.refresh()
    assert torch.equal(logits(kind, model), before)
    assert all(torch.equal(weights[name], now) for name, now in weights_of(model).items())


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_multiplier_speeds_up_new_heads_alone(kind: str) -> None:
    slow, fast = state_of(kind), state_of(kind)
    moves: list[dict[str, torch.Tensor]] = []
    for state, multiplier in ((slow, 1.0), (fast, 4.0)):
        slots = grow(kind, state, "small_random")
        before = weights_of(state.model)
        train(kind, state, 1, multiplier)
        moves.append({name: now - before[name] for name, now in weights_of(state.model).items()})
    slowly, quickly = moves
    new = {name: torch.zeros_like(moved, dtype=torch.bool) for name, moved in slowly.items()}
    for slot in slots:
        for places in head_places(kind, slow.model, *slot).values():
            for name, dim, where in places:
                new[name].narrow(dim, where.start, len(where)).fill_(True)
    for name, mask in new.items():
        torch.testing.assert_close(quickly[name][mask], 4 * slowly[name][mask])
        assert torch.equal(quickly[name][~mask], slowly[name][~mask])


# Masks by step.


def masked_by_step(kind: str, rows: list[list[float]]) -> PlasticModel:
    model = tiny_model(kind)
    model.network.config.step_head_mask = rows
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_by_step_gates_each_head_at_its_step_only(kind: str) -> None:
    plain = tiny_model(kind)
    steps, heads = plain.network.config.num_steps, plain.shape[1]
    rows = np.random.default_rng(0).random((steps, heads)).round(2)
    rows[0, 1] = rows[-1, 0] = 0.0
    found = logits(kind, masked_by_step(kind, rows.tolist()))
    assert (found - logits(kind, plain)).abs().max() > 1e-3
    if kind == "pnn-layers":  # a layer is a step
        gates = torch.zeros(1, steps, heads) + torch.from_numpy(rows)[None]
    else:
        gates = torch.from_numpy(rows)[:, None].expand(-1, *plain.shape)
    hooks = gate_at_each_step(plain, gates)
    torch.testing.assert_close(logits(kind, plain), found, rtol=0, atol=1e-12)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_by_step_and_absent_heads_act_together(kind: str) -> None:
    steps, heads = tiny_model(kind).network.config.num_steps, tiny_model(kind).shape[1]
    rows = (1.0 - np.eye(steps, heads)).tolist()
    model = masked_by_step(kind, rows)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    model.set_gates(head_map)
    gated = logits(kind, model)
    for slot in slots_in(model, ABSENT):
        for place in head_places(kind, model, *slot)["output"]:
            at(model, place).zero_()
    model.set_gates(HeadMap.full(*model.shape))
    torch.testing.assert_close(logits(kind, model), gated, rtol=0, atol=1e-12)
    message = "cannot be compacted, as its heads differ from step to step: use the dense format"
    with pytest.raises(ModelError, match=message):
        compact(model.network, family_of(kind), head_map)


# The whole cycle.

QUICK: dict[str, Any] = {"model__name": "pnn-nano", "cycle__baseline__lr": 3e-3}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"cycle__cycles": 3, "model__num_steps": 2}, marks=pytest.mark.slow),
        pytest.param(
            {"cycle__grow__init": "rewind", "model__num_steps": 6, "model__final_norm": True}, marks=pytest.mark.slow
        ),
        {"model__trunk": "hierarchical", "model__block_widths": (32, 48), "cycle__grow__init": "gradmax",
         "cycle__grow__strategy": "gradient_sensitivity"},
        pytest.param(
            {"model__trunk": "layers", "model__num_steps": 3, "cycle__prune__strategy": "fisher"},
            marks=pytest.mark.slow,
        ),
        {"cycle__cycles": 1, "model__random_depth": True, "model__input_injection": True,
         "cycle__prune__strategy": "entropy", "cycle__prune__direction": "low", "cycle__grow__strategy": "balanced"},
    ],
    ids=lambda changes: ", ".join(f"{name.rpartition('__')[2]} {value}" for name, value in changes.items()),
)  # fmt: skip
def test_heads_go_and_come_back_over_whole_cycles(changes: dict[str, Any], tmp_path: Path) -> None:
    plan = quick_plan(**QUICK | changes)
    records = run_all(plan, tmp_path)
    assert [record.phase for record in records] == [phase.kind for phase in plan.phases]
    for before, record in zip(records, records[1:], strict=False):
        change = {"prune": -1, "grow": 1}.get(record.phase, 0)
        assert np.sign(record.active_heads - before.active_heads) == change
        assert np.sign(record.params - before.params) == np.sign(record.flops_per_token - before.flops_per_token)
        if record.phase == "measure" or (record.phase == "grow" and changes.get("cycle__grow__init") != "rewind"):
            assert record.loss == pytest.approx(before.loss, rel=1e-5)


@pytest.mark.slow
def test_controls_run_beside_the_cycle(tmp_path: Path) -> None:
    controls = ["dense", "no_regrow", "random_random", "rewind", "from_scratch_small"]
    plan = quick_plan(**QUICK, cycle__cycles=1, search__controls=controls)
    records = run_all(plan, tmp_path)
    assert {record.arm for record in records} == {"main", *controls}
    ends = {record.arm: record for record in records}
    assert ends["dense"].active_heads == 8 and ends["dense"].params > ends["main"].params
    assert ends["no_regrow"].active_heads < ends["random_random"].active_heads == ends["main"].active_heads
    assert sum(grown >= 0 for grown in ends["from_scratch_small"].head_map[0]) == ends["main"].active_heads


def test_shared_phases_are_the_unshared_ones_bit_for_bit(tmp_path: Path) -> None:
    plans = [quick_plan(trial, **QUICK, cycle__cycles=1, cycle__learn__lr=lr) for trial, lr in ((1, 3e-3), (2, 5e-3))]
    together = [run_all(plan, tmp_path / "together") for plan in plans]
    assert [record.reused for record in together[1]] == [True] * 4 + [False]
    alone = run_all(plans[1], tmp_path / "alone")
    assert [record.outcome() for record in together[1]] == [record.outcome() for record in alone]
    weights = [PhaseStore(tmp_path / name) for name in ("together", "alone")]
    ours, theirs = (TrialState.restored(plans[1], plans[1].phases[-1].key, store, trial_data(plans[1]).facts, cpu())
                    for store in weights)  # fmt: skip
    assert all(torch.equal(now, theirs.tensors()[name]) for name, now in ours.tensors().items())


def test_a_trial_that_was_cut_off_goes_on_as_one_that_never_stopped(tmp_path: Path) -> None:
    plan = quick_plan(**QUICK, cycle__cycles=1, model__random_depth=True)
    running = run_trial(plan, cpu(), PhaseStore(tmp_path / "cut"))
    for _ in range(3):
        next(running)
    again = list(run_trial(plan, cpu(), PhaseStore(tmp_path / "cut")))
    whole = run_all(plan, tmp_path / "whole")
    assert [record.outcome() for record in again] == [record.outcome() for record in whole]


# Export.


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("compact", {"model__trunk": "hierarchical", "model__block_widths": (32, 48)}),
        pytest.param("dense", {}, marks=pytest.mark.slow),
        pytest.param(
            "dense", {"model__trunk": "hierarchical", "model__block_widths": (32, 48)}, marks=pytest.mark.slow
        ),
        pytest.param("compact", {}, marks=pytest.mark.slow),
    ],
)
def test_an_exported_network_is_the_trials(form: Any, options: dict[str, Any], tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, "pnn", **QUICK, cycle__cycles=1, **options)
    export(sweep, 1, tmp_path / "out", form)
    finished = restore(sweep, 1)
    state, batch = finished.state, finished.held_out_batch()
    network = load_model(tmp_path / "out")
    whole, family, head_map = load_whole(tmp_path / "out")
    assert head_map.to_lists() == finished.last.head_map and state.head_map.active < state.head_map.grown.size
    assert sum(p.numel() for p in network.parameters()) == (
        finished.last.params if form == "compact" else sum(p.numel() for p in state.model.network.parameters())
    )
    with torch.no_grad():
        expected = logits_of(state.model, batch)
        found = logits_of(PlasticModel(network, family.sites(network)), batch)
        assert torch.equal(logits_of(PlasticModel(whole, family.sites(whole)), batch), expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), state.model.network.parameters(), strict=True))


def test_an_exported_network_goes_on_with_any_number_of_steps(tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, "pnn", **QUICK, cycle__cycles=1, model__num_steps=3)
    export(sweep, 1, tmp_path / "out", "compact")
    network, finished = load_model(tmp_path / "out"), restore(sweep, 1)
    batch = replace(finished.held_out_batch(), labelled=None)
    masked: Any = finished.state.model.network
    with torch.no_grad():
        for steps in (1, 3, 5):
            expected = masked(batch.inputs, num_steps=steps).logits
            torch.testing.assert_close(network(batch.inputs, num_steps=steps).logits, expected, rtol=0, atol=1e-5)
