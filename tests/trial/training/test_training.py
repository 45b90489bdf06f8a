"""The training loop: its schedules reach the model, accumulation changes nothing, and divergence stops it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import CAUSAL, DECODERS, GROUPED, cpu, head_places, mean_loss, some_tokens, tiny_model, weights_of
from torch import nn

from raysweep.errors import DivergedError
from raysweep.job import registry
from raysweep.job.plan import LOG_EVERY
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.state import TrialState
from raysweep.trial.training.loop import Schedule, Training

NEW = [(0, 1), (2, 0)]
ABSENT = [*NEW, (1, 2)]


def grown_state(
    kind: str = "gpt2", dtype: torch.dtype = torch.float64, initializer: str = "small_random"
) -> TrialState:
    """Return a state in which two heads have just been grown and one is absent."""
    model = tiny_model(kind, dtype=dtype)
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.1)
    state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
    state.remove_heads(ABSENT, None)
    state.add_heads(NEW, cycle=1)
    state.initialise_new_heads(NEW, registry.build("init", initializer), "key")
    state.refresh()
    return state


def training_of(state: TrialState, schedule: Schedule, **options: Any) -> Training:
    windows = some_tokens(30, 12, seed=3).numpy().astype(np.uint16)
    training: dict[str, Any] = {
        "batch_size": 4, "accumulation": 1, "clip_norm": 1.0, "precision": "fp32", "weight_decay": 0.1,
        "compile": False, **options.pop("training", {}),
    }  # fmt: skip
    order = BatchOrder(num_windows=len(windows), batch_size=training["batch_size"], seed=8)
    return Training(state=state, schedule=schedule, examples=windows, task=CAUSAL, order=order, training=training,
                    runtime=cpu(), **options)  # fmt: skip


def schedule(steps: int, **options: Any) -> Schedule:
    return Schedule(**({"steps": steps, "lr": 0.01, "warmup_fraction": 0.0} | options))


def test_gate_warm_up_alone_changes_what_passes_and_not_how_fast_anything_learns(monkeypatch: Any) -> None:
    seen: dict[int, list[tuple[float, dict[int, float]]]] = {0: [], 4: []}
    losses, first = {}, {}
    original = SliceAdamW.step
    for warmup, steps in seen.items():
        state = grown_state()

        def step(self: SliceAdamW, lr: float, multipliers: Any, steps: Any = steps) -> None:
            steps.append((lr, multipliers))
            original(self, lr, multipliers)

        monkeypatch.setattr(SliceAdamW, "step", step)
        training = training_of(state, schedule(10, gate_warmup_steps=warmup, gate_start=0.1))
        first[warmup] = weights_of(state.model)
        losses[warmup] = training.run()[0]["loss"]
    assert seen[0] == seen[4] and all(multipliers == {0: 1.0} for _, multipliers in seen[0])
    assert losses[0] != losses[4]
    assert all(torch.equal(weights, first[4][name]) for name, weights in first[0].items())


# Schedules.


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine_towards_zero() -> None:
    rates = [schedule(20, lr=2.0, warmup_fraction=0.25).learning_rate(step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5:] == pytest.approx([1 + math.cos(math.pi * step / 15) for step in range(15)])
    assert all(a > b for a, b in zip(rates[5:], rates[6:], strict=False)) and 0 < rates[-1] < 0.05
    assert schedule(4, lr=2.0).learning_rate(0) == 2.0
    assert schedule(1, lr=2.0, warmup_fraction=0.9).learning_rate(0) == 2.0


def test_the_multiplier_falls_as_a_half_cosine_to_exactly_one() -> None:
    some = schedule(20, new_head_lr_multiplier=5.0, multiplier_decay_steps=8)
    values = [some.multiplier(step) for step in range(20)]
    assert values[:8] == pytest.approx([3 + 2 * math.cos(math.pi * step / 8) for step in range(8)])
    assert values[0] == 5.0 and values[8:] == [1.0] * 12
    assert all(a > b for a, b in zip(values[:8], values[1:9], strict=True))
    whole = schedule(20, new_head_lr_multiplier=5.0)
    assert whole.multiplier(10) == pytest.approx(3.0) and whole.multiplier(19) > 1.0 and whole.multiplier(20) == 1.0
    assert [schedule(5).multiplier(step) for step in range(6)] == [1.0] * 6


def test_the_gate_rises_linearly_to_exactly_one_and_is_never_closed() -> None:
    some = schedule(20, gate_warmup_steps=4, gate_start=0.2)
    assert [some.gate(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert some.gate(4) == 1.0
    assert [schedule(5).gate(step) for step in range(3)] == [1.0] * 3
    assert schedule(20, gate_warmup_steps=1, gate_start=0.1).gate(0) == 0.1


# Gate warm-up.


def test_gate_warm_up_reaches_the_forward_pass_step_by_step_and_ends_open() -> None:
    state = grown_state()
    some = schedule(7, gate_warmup_steps=4, gate_start=0.2)
    seen: list[list[list[float]]] = []
    state.model.register_forward_pre_hook(lambda model, _: seen.append(
        [[1.0] * 3 if gate.values is None else gate.values.tolist() for gate in model.gates]))  # fmt: skip
    training_of(state, some).run()
    assert len(seen) == 7
    for step, gates in enumerate(seen):
        assert gates[0] == pytest.approx([1.0, some.gate(step), 1.0])
        assert gates[1] == [1.0, 1.0, 0.0]
        assert gates[2] == pytest.approx([some.gate(step), 1.0, 1.0])
    values = [gates[0][1] for gates in seen]
    assert values[4:] == [1.0] * 3 and all(0 < a < b for a, b in zip(values[:4], values[1:5], strict=True))
    assert [gate.values is None for gate in state.model.gates] == [True, False, True]


def test_a_warm_up_as_long_as_the_phase_ends_open_too() -> None:
    state = grown_state()
    (point,) = training_of(state, schedule(4, gate_warmup_steps=4, gate_start=0.2)).run()
    assert point["new_head_gate"] == pytest.approx(0.8)
    assert [gate.values is None for gate in state.model.gates] == [True, False, True]


def test_what_a_half_open_head_says_is_half_as_loud() -> None:
    losses = []
    for start in (0.01, 0.5, 1.0):
        state = grown_state()
        points = training_of(state, schedule(1, gate_warmup_steps=1, gate_start=start)).run()
        losses.append(points[0]["loss"])
    reference = grown_state()
    tokens = torch.from_numpy(training_of(reference, schedule(1)).examples.astype(np.int64))
    tokens = tokens[training_of(reference, schedule(1)).order.indices(0)]
    for layer, head in NEW:
        for name, dim, where in head_places("gpt2", reference.model, layer, head)["output"]:
            reference.model.network.get_parameter(name).data.narrow(dim, where.start, len(where)).mul_(0.5)
    assert losses[1] == pytest.approx(float(mean_loss(reference.model(tokens), tokens).detach()), rel=1e-6)
    assert len({round(loss, 6) for loss in losses}) == 3


def test_without_new_heads_a_warm_up_touches_no_gate() -> None:
    state = grown_state()
    state.settle()
    seen = []
    state.model.register_forward_pre_hook(lambda model, _: seen.append(model.gates[0].values))
    points = training_of(state, schedule(3, gate_warmup_steps=3, gate_start=0.2)).run()
    assert seen == [None] * 3
    assert "new_head_gate" not in points[-1] and "new_head_multiplier" not in points[-1]


# The multiplier of new heads.


@pytest.mark.parametrize("kind", DECODERS)
def test_the_multiplier_scales_the_first_update_of_new_slices_and_of_no_others(kind: str) -> None:
    moved = []
    for multiplier in (1.0, 4.0):
        state = grown_state(kind)
        before = weights_of(state.model)
        training_of(state, schedule(1, new_head_lr_multiplier=multiplier)).run()
        moved.append({name: weight - before[name] for name, weight in weights_of(state.model).items()})
    masks = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in moved[0].items()}
    for slot in NEW:
        for role, places in head_places(kind, state.model, *slot).items():
            for name, dim, where in places:
                if role in ("query", "output") or kind not in GROUPED:
                    masks[name].narrow(dim, where.start, len(where)).fill_(True)
    for name, mask in masks.items():
        torch.testing.assert_close(moved[1][name][mask], 4 * moved[0][name][mask], rtol=1e-9, atol=1e-15)
        assert torch.equal(moved[1][name][~mask], moved[0][name][~mask]), name


# Generations: heads that grow at different steps of one phase.


def growing_state(births: dict[tuple[int, int], int]) -> TrialState:
    state = grown_state()
    state.remove_heads(NEW, None)
    for cycle, (slot, born) in enumerate(births.items(), 2):
        state.add_heads([slot], cycle, born)
        state.initialise_new_heads([slot], registry.build("init", "small_random"), "key")
    state.refresh()
    return state


def test_each_generation_has_gates_and_multipliers_by_its_own_clock_step_by_step(monkeypatch: Any) -> None:
    """A head is pruned and another grown while two earlier ones are on their way: those go on as if nothing were."""
    state = growing_state({(0, 1): 0, (2, 0): 2})
    some = schedule(12, gate_warmup_steps=6, gate_start=0.2, new_head_lr_multiplier=5.0, multiplier_decay_steps=8)
    gates: list[list[Any]] = []
    multipliers: list[dict[int, float]] = []
    original = SliceAdamW.step

    def listening(self: SliceAdamW, lr: float, given: Any) -> None:
        multipliers.append(given)
        original(self, lr, given)

    def event(step: int) -> None:
        if step == 4:
            state.remove_heads([(1, 0)], None)
            state.add_heads([(1, 2)], cycle=4, born=4)
            state.initialise_new_heads([(1, 2)], registry.build("init", "small_random"), "other")
            state.refresh()
        if step == 9:
            state.remove_heads([(2, 0)], None)
            state.refresh()

    monkeypatch.setattr(SliceAdamW, "step", listening)
    state.model.register_forward_pre_hook(lambda model, _: gates.append(
        [[1.0] * 3 if gate.values is None else gate.values.tolist() for gate in model.gates]))  # fmt: skip
    training = training_of(state, some, before_step=event)
    training.run(2)
    assert len(gates) == len(multipliers) == 10
    for step, (opened, given) in enumerate(zip(gates, multipliers, strict=True), 2):
        old, grown = float(step < 4), 0.0 if step < 4 else min(1.0, 0.2 + 0.8 * (step - 4) / 6)
        second = 0.0 if step >= 9 else min(1.0, 0.2 + 0.8 * (step - 2) / 6)
        assert opened[0] == pytest.approx([1.0, min(1.0, 0.2 + 0.8 * step / 6), 1.0]), step
        assert opened[1] == pytest.approx([old, 1.0, grown]), step
        assert opened[2] == pytest.approx([second, 1.0, 1.0]), step
        births = {0} | ({2} if step < 9 else set()) | ({4} if step >= 4 else set())
        expected = {born: 3 + 2 * math.cos(math.pi * min(step - born, 8) / 8) for born in births}
        assert given == pytest.approx(expected), step
    assert training.curve[-1]["new_head_gate"] == pytest.approx(grown)  # of the youngest
    assert training.curve[-1]["new_head_multiplier"] == pytest.approx(expected[4])
    assert state.new_heads == {}


def test_without_a_decay_of_its_own_a_multiplier_lasts_from_birth_to_the_end_of_the_phase() -> None:
    some = schedule(20, new_head_lr_multiplier=5.0)
    assert [some.multiplier(born, born) for born in (0, 6, 19)] == [5.0] * 3
    assert some.multiplier(13, 6) == pytest.approx(3.0) and some.multiplier(19, 6) > 1.0 == some.multiplier(20, 6)


def test_overlapping_generations_move_in_the_ratio_of_their_multipliers() -> None:
    births = {(0, 1): 0, (2, 0): 3}
    moved, some = [], schedule(8, new_head_lr_multiplier=4.0, multiplier_decay_steps=6)
    for ratio in (1.0, 4.0):
        state = growing_state(births)
        before = weights_of(state.model)
        training = training_of(state, dataclasses.replace(some, new_head_lr_multiplier=ratio))
        loss_of_one_step(training, 3)
        moved.append({name: weight - before[name] for name, weight in weights_of(state.model).items()})
    times = {name: torch.ones_like(tensor) for name, tensor in moved[0].items()}
    for slot, born in births.items():
        for places in head_places("gpt2", state.model, *slot).values():
            for name, dim, where in places:
                times[name].narrow(dim, where.start, len(where)).fill_(some.multiplier(3, born))
    assert sorted({float(v) for factor in times.values() for v in factor.unique()}) == pytest.approx([1.0, 2.5, 4.0])
    for name, factor in times.items():
        torch.testing.assert_close(moved[1][name], factor * moved[0][name], rtol=1e-9, atol=1e-15, msg=name)


# Accumulation, clipping, order.


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_micro_batches_equal_one_batch(kind: str, accumulation: int) -> None:
    results = []
    for parts in (1, accumulation):
        state = grown_state(kind)
        curve = training_of(state, schedule(5, gate_warmup_steps=2, new_head_lr_multiplier=3.0),
                            training={"accumulation": parts}).run()  # fmt: skip
        results.append((state.tensors(), curve))
    (one, one_curve), (many, many_curve) = results
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, rtol=1e-5, atol=1e-8, msg=name)
    for name, value in one_curve[-1].items():
        assert many_curve[-1][name] == pytest.approx(value, rel=1e-6), name


def test_accumulation_runs_the_passes_it_is_asked_for() -> None:
    state = grown_state()
    sizes: list[int] = []
    state.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    training_of(state, schedule(3), training={"accumulation": 2}).run()
    assert sizes == [2] * 6


def test_gradients_are_clipped_before_the_step_and_logged_as_they_were() -> None:
    norms = []
    for clip in (1e-3, 1e6):
        state = grown_state()
        (point,) = training_of(state, schedule(1), training={"clip_norm": clip}).run()
        moments = [t for name, t in state.optimizer.state_tensors().items() if name.endswith("exp_avg")]
        clipped = float(torch.stack([moment.norm() for moment in moments]).norm()) / 0.1  # the first moment is 0.1 g
        assert clipped == pytest.approx(min(clip, point["gradient_norm"]), rel=1e-4)
        norms.append(point["gradient_norm"])
    assert norms[0] == norms[1] > 0.1


def test_each_step_trains_on_the_windows_that_its_order_names() -> None:
    state = grown_state()
    training = training_of(state, schedule(9))
    seen: list[Any] = []
    state.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    training.run()
    for step, tokens in enumerate(seen):
        assert np.array_equal(tokens, training.examples[training.order.indices(step)])


def test_training_equals_a_plain_loop() -> None:
    """The whole of it once more by hand, for a phase without new heads, in double precision."""
    state = grown_state()
    state.settle()
    training = training_of(state, schedule(6, warmup_fraction=0.5))
    reference = grown_state()
    groups = [[p for p in reference.model.parameters() if (p.dim() >= 2) == matrix] for matrix in (True, False)]
    adamw = torch.optim.AdamW([{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}])
    losses, norms = [], []
    (held, name) = reference.model.sites[1].head_slices(2), "transformer.h.1.attn.c_proj.weight"
    for step in range(6):
        tokens = torch.from_numpy(training.examples[training.order.indices(step)].astype(np.int64))
        loss = mean_loss(reference.model(tokens), tokens)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(reference.model.parameters(), 1.0)))
        saved = weights_of(reference.model)
        for group in adamw.param_groups:
            group["lr"] = training.schedule.learning_rate(step)
        adamw.step()
        adamw.zero_grad()
        for part in held:  # the absent head
            where = (slice(None),) * part.dim + (slice(part.start, part.start + part.length),)
            reference.model.network.get_parameter(part.parameter).data[where] = saved[part.parameter][where]
        losses.append(float(loss.detach()))
    (point,) = training.run()
    assert name in {part.parameter for part in held}
    for (name, ours), theirs in zip(weights_of(state.model).items(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-7, atol=1e-9, msg=name)
    assert point["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert point["gradient_norm"] == pytest.approx(norms[-1], rel=1e-6)
    assert state.model.training and all(parameter.grad is None for parameter in state.model.parameters())


# The curve.


def test_points_hold_the_mean_loss_since_the_point_before() -> None:
    state = grown_state()
    each: list[float] = []
    seen: list[dict[str, float]] = []
    some = schedule(LOG_EVERY + 3, gate_warmup_steps=4, new_head_lr_multiplier=3.0, multiplier_decay_steps=12)
    single = grown_state()
    for step in range(LOG_EVERY + 3):
        each.append(loss_of_one_step(training_of(single, some), step))
    curve = training_of(state, some, on_point=seen.append).run()
    assert curve == seen and [point["step"] for point in curve] == [LOG_EVERY, LOG_EVERY + 3]
    assert curve[0]["loss"] == pytest.approx(np.mean(each[:LOG_EVERY]), rel=1e-6)
    assert curve[1]["loss"] == pytest.approx(np.mean(each[LOG_EVERY:]), rel=1e-6)
    for point in curve:
        last = int(point["step"]) - 1
        assert point["lr"] == some.learning_rate(last)
        assert point["new_head_gate"] == some.gate(last)
        assert point["new_head_multiplier"] == some.multiplier(last)


def loss_of_one_step(training: Training, step: int) -> float:
    """Train one step of a phase, as a run that is killed after it would."""

    class KilledError(Exception):
        pass

    def stop(_: int) -> None:
        raise KilledError

    training.between_steps = stop
    with contextlib.suppress(KilledError):
        training.run(step)
    return training.curve[-1]["loss"] if training.curve else float(training.unlogged[0] / training.unlogged[1])


def test_between_steps_all_that_is_due_is_done_and_the_end_is_not_between() -> None:
    seen: list[tuple[int, float, int]] = []
    costs = iter([1.0] * 4 + [0.5] * 5)
    training = training_of(
        grown_state(), schedule(9), evaluate=lambda: 2.5, evaluate_every=3, step_flops=lambda: next(costs)
    )
    training.between_steps = lambda step: seen.append((step, training.flops, len(training.evaluations)))
    training.run()
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [count for _, _, count in seen] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert training.evaluations == [
        {"step": 3.0, "loss": 2.5, "training_flops": 3.0}, {"step": 6.0, "loss": 2.5, "training_flops": 5.0},
    ]  # fmt: skip
    assert training.flops == 6.5


def test_training_does_not_read_the_global_generators() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        state = grown_state()
        training_of(state, schedule(3)).run()
        found.append(weights_of(state.model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# Divergence.


def test_a_learning_rate_beyond_reason_is_a_divergence() -> None:
    with pytest.raises(DivergedError, match="at step"):
        training_of(grown_state(dtype=torch.float32), schedule(40, lr=1e6)).run()


def test_a_weight_that_is_no_number_is_a_divergence() -> None:
    state = grown_state(dtype=torch.float32)
    state.model.network.transformer.h[1].mlp.c_fc.weight.data[0, 0] = math.nan
    with pytest.raises(DivergedError, match="at step 4 the loss is nan"):
        training_of(state, schedule(4)).run()


def test_a_loss_that_was_no_number_for_one_step_is_not_averaged_away() -> None:
    """The loss is NaN in the second of ten steps only; the point at step ten still stops the phase."""
    state = grown_state(dtype=torch.float32)
    calls: list[int] = []

    def poison(_: nn.Module, __: Any, logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return logits * (math.nan if len(calls) == 2 else 1.0)

    state.model.register_forward_hook(poison)
    with pytest.raises(DivergedError, match="at step 10"):
        training_of(state, schedule(20)).run()
