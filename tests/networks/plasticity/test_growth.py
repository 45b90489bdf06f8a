"""Growing heads: functions are preserved or perturbed as promised, new heads live, and the rest does not notice."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    DECODERS,
    at,
    causal,
    head_map_without,
    head_places,
    mean_loss,
    some_tokens,
    tiny_model,
    weights_of,
)

from raysweep.contracts import HeadSlice
from raysweep.job import registry
from raysweep.networks.plasticity.growth_probe import value_directions
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.insertion import Sources, insert, propose
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.surgery import absent_slices, grown_slices, present_slices, snapshot
from raysweep.trial.state import TrialState

# With grouped queries, one whole group and a part of another.
ABSENT = {
    **dict.fromkeys(DECODERS, [(0, 1), (1, 0), (1, 2)]), "llama": [(0, 0), (0, 4), (2, 1)],
    **dict.fromkeys(("llama-gqa", "mistral", "qwen3"), [(0, 3), (0, 4), (0, 5), (1, 0)]),
    "llama-mqa": [(0, 0), (2, 2), (2, 4)],
}  # fmt: skip
GROWN = {kind: slots[::2] for kind, slots in ABSENT.items()}
INITS = ["gradmax", "rewind", "small_random", "split", "zero_output"]


def state_of(kind: str, dtype: torch.dtype = torch.float64) -> TrialState:
    model = tiny_model(kind, dtype=dtype)
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.1)
    return TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))


def train(state: TrialState, steps: int, seed: int, lr: float = 0.01) -> None:
    for step in range(steps):
        tokens = some_tokens(4, seed=seed + step)
        mean_loss(state.model(tokens), tokens).backward()
        state.optimizer.step(lr)
        state.optimizer.zero_grad()


def pruned(kind: str, dtype: torch.dtype = torch.float64) -> TrialState:
    state = state_of(kind, dtype)
    train(state, 3, seed=10)
    state.remove_heads(ABSENT[kind], None)
    state.refresh()
    return state


def sources_of(state: TrialState) -> Sources:
    """Measure what any initializer may need on two batches."""
    batches = [causal(some_tokens(4, seed=seed)) for seed in (70, 71)]
    taylor = probe(state.model, batches, state.head_map, lambda tensor: tensor).taylor
    directions = value_directions(state.model, batches, state.head_map, lambda tensor: tensor, causal=True)
    return Sources(taylor=taylor, stored=state.stored, directions=directions)


def grow(
    state: TrialState, slots: list[tuple[int, int]], initializer: str, key: str = "key", **options: Any
) -> Sources:
    sources = sources_of(state)
    state.add_heads(slots, cycle=1)
    state.initialise_new_heads(slots, registry.build("init", initializer, options), key, sources)
    state.refresh()
    return sources


def logits(model: PlasticModel) -> torch.Tensor:
    with torch.no_grad():
        return model(some_tokens())


def everything(state: TrialState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def marked(state: TrialState, slices: Iterable[HeadSlice]) -> dict[str, torch.Tensor]:
    """Return masks over `tensors()` of what belongs to the slices: weights and both moments."""
    masks = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in state.tensors().items()}
    for part in slices:
        for name in (
            f"model/{part.parameter}",
            *(f"optimizer/{part.parameter}/{m}" for m in ("exp_avg", "exp_avg_sq")),
        ):
            masks[name].narrow(part.dim, part.start, part.length).fill_(True)
    return masks


# The function.


@pytest.mark.parametrize("name", ["zero_output", "gradmax", "split"])
@pytest.mark.parametrize("kind", DECODERS)
def test_function_preserving_growth_leaves_the_logits_alone(kind: str, name: str) -> None:
    state = pruned(kind)
    before = logits(state.model)
    grow(state, GROWN[kind], name)
    torch.testing.assert_close(logits(state.model), before, rtol=0, atol=1e-12)
    assert state.head_map.active == HeadMap.full(*state.model.shape).active - len(ABSENT[kind]) + len(GROWN[kind])


@pytest.mark.parametrize("kind", DECODERS)
def test_small_random_growth_perturbs_the_logits_a_little(kind: str) -> None:
    state = pruned(kind)
    before = logits(state.model)
    state.model.set_gates(HeadMap.full(*state.model.shape))
    assert torch.equal(logits(state.model), before)  # absent heads are zero: opening a gate alone brings nothing back
    grow(state, GROWN[kind], "small_random")
    changed = float((logits(state.model) - before).abs().max())
    assert 1e-7 < changed < 0.5 * float(before.abs().max())


# Life.


@pytest.mark.parametrize("initializer", INITS)
@pytest.mark.parametrize("kind", DECODERS)
def test_all_four_matrices_of_each_new_head_have_moved_after_three_steps(kind: str, initializer: str) -> None:
    state = pruned(kind)
    grow(state, GROWN[kind], initializer)
    state.optimizer.adamw.param_groups[0]["weight_decay"] = 0.0  # decay moves the dead as well
    before = weights_of(state.model)
    train(state, 3, seed=50)
    for slot in GROWN[kind]:
        for role, (place, *_) in head_places(kind, state.model, *slot).items():
            name, dim, where = place
            moved = at(state.model, place) - before[name].narrow(dim, where.start, len(where))
            assert (moved.abs() > 1e-6).float().mean() > 0.9, (slot, role)


def test_a_head_of_zeros_is_dead_and_the_same_check_sees_it() -> None:
    state = pruned("gpt2")
    state.add_heads([(0, 1)], cycle=1)
    for role in head_places("gpt2", state.model, 0, 1).values():
        for place in role:
            at(state.model, place).zero_()
    state.refresh()
    train(state, 3, seed=50)
    for role in head_places("gpt2", state.model, 0, 1).values():
        assert not at(state.model, role[0]).any()


# Initialisation.


@pytest.mark.parametrize("name", ["zero_output", "small_random"])
@pytest.mark.parametrize("kind", DECODERS)
def test_initializers_draw_at_the_models_own_scale_with_biases_at_zero(kind: str, name: str) -> None:
    state = pruned(kind)
    config = state.model.network.config
    setattr(config, "init_std" if kind == "opt" else "initializer_range", 0.05)
    grow(state, ABSENT[kind], name)
    drawn: dict[str, list[torch.Tensor]] = {"query": [], "key": [], "value": [], "output": []}
    for part in state.new_slices:
        view = state.model.network.get_parameter(part.parameter).data.narrow(part.dim, part.start, part.length)
        if view.dim() == 1 or (part.role == "output" and name == "zero_output"):
            assert not view.any(), part
        else:
            drawn[part.role].append(view.flatten())
    for role, values in drawn.items():
        if values:
            assert torch.cat(values).std() == pytest.approx(0.05, rel=0.25), role
            assert abs(float(torch.cat(values).mean())) < 0.01, role
    assert [role for role, values in drawn.items() if not values] == (
        (["key", "value"] if kind == "llama-mqa" else []) + (["output"] if name == "zero_output" else [])
    )


def test_the_initializers_here_are_all_there_are() -> None:
    assert registry.available("init") == INITS


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
@pytest.mark.parametrize("name", ["small_random", "zero_output"])
def test_a_new_head_starts_with_the_same_weights_in_any_order_and_company(kind: str, name: str) -> None:
    initializer = registry.build("init", name)
    reference = tiny_model(kind)
    before = head_map_without(reference, *ABSENT[kind])
    slices = absent_slices(reference.sites, before)
    insert(reference, before, ABSENT[kind], initializer, "key", Sources())
    expected = dict(zip(slices, snapshot(reference, slices), strict=True))
    for number in range(20):
        company = np.random.default_rng(number).permutation(len(ABSENT[kind]))[: 1 + number % 4]
        model = tiny_model(kind, seed=number)
        torch.manual_seed(number)
        changed = insert(model, before, [ABSENT[kind][index] for index in company], initializer, "key", Sources())
        assert changed
        for part in changed:
            assert torch.equal(snapshot(model, [part])[0], expected[part])
    insert(reference, before, ABSENT[kind], initializer, "another key", Sources())
    again = snapshot(reference, slices)
    assert not any(torch.equal(a, b) for a, b in zip(again, expected.values(), strict=True) if b.any())


def test_new_heads_differ_from_each_other_in_every_role() -> None:
    state = pruned("gpt2")
    grow(state, ABSENT["gpt2"], "small_random")
    for role in ("query", "key", "value", "output"):
        drawn = [at(state.model, head_places("gpt2", state.model, *slot)[role][0]) for slot in ABSENT["gpt2"]]
        assert not any(torch.equal(a, b) for a, b in permutations(drawn, 2))
    query, key, value = (
        at(state.model, head_places("gpt2", state.model, 1, 0)[r][0]) for r in ("query", "key", "value")
    )
    assert not torch.equal(query, key) and not torch.equal(key, value)


# Bookkeeping: what belongs to whom.


@pytest.mark.parametrize("kind", DECODERS)
def test_present_and_absent_slices_part_everything_that_heads_own(kind: str) -> None:
    model = tiny_model(kind)
    head_map = head_map_without(model, *ABSENT[kind])
    absent, present = absent_slices(model.sites, head_map), present_slices(model.sites, head_map)
    assert not set(absent) & set(present)
    assert set(absent) | set(present) == set(present_slices(model.sites, HeadMap.full(*model.shape)))
    assert len(absent) == len(set(absent)) and len(present) == len(set(present))
    assert absent_slices(model.sites, HeadMap.full(*model.shape)) == []


def test_a_shared_key_and_value_go_with_the_last_of_their_heads_and_return_with_the_first() -> None:
    model = tiny_model("llama-gqa")

    def shared(parts: list[HeadSlice]) -> list[tuple[str, int]]:
        return sorted((part.role, part.start // part.length) for part in parts if part.role in ("key", "value"))

    two_gone = head_map_without(model, (1, 3), (1, 4))
    three_gone = two_gone.without([(1, 5)])
    assert shared(absent_slices(model.sites, two_gone)) == []
    assert shared(absent_slices(model.sites, three_gone)) == [("key", 1), ("value", 1)]
    assert shared(grown_slices(model.sites, three_gone, [(1, 4)])) == [("key", 1), ("value", 1)]
    assert shared(grown_slices(model.sites, two_gone, [(1, 4)])) == []
    assert shared(grown_slices(model.sites, three_gone.with_grown([(1, 4)], 1), [(1, 3)])) == []


@pytest.mark.parametrize("kind", DECODERS)
def test_untouched_heads_are_bit_identical_through_prune_and_regrowth(kind: str) -> None:
    state = state_of(kind, torch.float32)
    train(state, 4, seed=10)
    trained = everything(state)
    state.remove_heads(ABSENT[kind], None)
    state.refresh()
    absent = marked(state, absent_slices(state.model.sites, state.head_map))
    assert sum(int(mask.sum()) for mask in absent.values()) > 0
    for name, tensor in everything(state).items():
        assert torch.equal(tensor[~absent[name]], trained[name][~absent[name]]), name
        assert not tensor[absent[name]].any(), name  # weights and moments
    train(state, 3, seed=20)
    adapted = everything(state)
    grow(state, GROWN[kind], "small_random")
    new = marked(state, state.new_slices)
    assert sum(int(mask.sum()) for mask in new.values()) > 0
    for name, tensor in everything(state).items():
        assert torch.equal(tensor[~new[name]], adapted[name][~new[name]]), name
        if name.startswith("optimizer/"):
            assert not tensor[new[name]].any(), name
    assert state.new_heads == dict.fromkeys(GROWN[kind], 0)
    assert all(state.head_map.grown[slot] == (1 if slot in GROWN[kind] else -1) for slot in ABSENT[kind])


@pytest.mark.parametrize("name", ["rewind", "small_random", "split", "zero_output"])
@pytest.mark.parametrize("kind", DECODERS)
def test_proposals_fill_every_absent_head_as_if_it_grew_alone_and_leave_the_present_ones_whole(
    kind: str, name: str
) -> None:
    state, initializer = pruned(kind), registry.build("init", name)
    before, sources = everything(state), sources_of(state)
    absent = absent_slices(state.model.sites, state.head_map)
    outside = {part: mask for part, mask in marked(state, absent).items()}
    propose(state.model, state.head_map, initializer, "key", sources)
    assert all(torch.equal(t[~outside[n]], before[n][~outside[n]]) for n, t in everything(state).items())
    proposed = dict(zip(absent, snapshot(state.model, absent), strict=True))
    for slot in ABSENT[kind]:
        alone = pruned(kind)
        for part in insert(alone.model, alone.head_map, [slot], initializer, "key", sources_of(alone)):
            if part in proposed:
                assert torch.equal(snapshot(alone.model, [part])[0], proposed[part]), (slot, part)
    state.refresh()
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything(state).items())


def test_growth_in_a_later_cycle_starts_with_a_clean_slate() -> None:
    state = pruned("gpt2")
    grow(state, GROWN["gpt2"], "zero_output")
    state.settle()
    state.remove_heads([(2, 2)], np.zeros((3, 3)))
    assert state.new_heads == {} and state.new_slices == {}
    state.refresh()
    before: Any = weights_of(state.model)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step(0.01, {0: 7.0})  # nothing is new, so nothing is scaled
    moved = (
        before["transformer.h.0.attn.c_proj.weight"] - state.model.network.transformer.h[0].attn.c_proj.weight
    ).abs()
    assert moved.max() < 0.03


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
def test_a_head_that_is_pruned_ends_and_regrown_it_begins_anew_while_the_others_go_on(kind: str) -> None:
    state = pruned(kind)
    first, *others = GROWN[kind]
    state.add_heads([first, *others], cycle=1, born=3)
    its_own = set(state.model.sites[first[0]].head_slices(first[1]))
    theirs = set(state.new_slices) - its_own
    state.remove_heads([first], None)
    assert state.new_heads == dict.fromkeys(others, 3)
    assert theirs <= set(state.new_slices) and set(state.new_slices.values()) == {3}
    assert not set(state.new_slices) & set(absent_slices(state.model.sites, state.head_map))
    state.add_heads([first], cycle=2, born=8)
    assert state.new_heads == {**dict.fromkeys(others, 3), first: 8}
    assert all(state.new_slices[part] == 8 for part in its_own)
    assert all(state.new_slices[part] == 3 for part in theirs - its_own)
