"""Split, rewind and GradMax: what each promises of the new head, of its donor, and of the heads that are left alone."""

from __future__ import annotations

from collections.abc import Sequence
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
)  # fmt: skip

from raysweep.contracts import Slot
from raysweep.errors import TrialError
from raysweep.job import registry
from raysweep.networks.plasticity.donors import donors_of
from raysweep.networks.plasticity.growth_probe import value_directions
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.insertion import Sources
from raysweep.networks.plasticity.liveness import dead_heads
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.plasticity.probe import probe
from raysweep.networks.plasticity.surgery import slice_name, slice_named
from raysweep.trial.state import TrialState

INITS = registry.available("init")
# With grouped queries: a whole group of one layer, and parts of groups of others.
ABSENT: dict[str, list[Slot]] = {
    **dict.fromkeys(DECODERS, [(0, 1), (1, 0), (1, 2)]), "llama": [(0, 0), (0, 4), (2, 1)],
    **dict.fromkeys(("llama-gqa", "mistral", "qwen3"), [(0, 3), (0, 4), (0, 5), (1, 0)]),
    "llama-mqa": [(0, 0), (2, 2), (2, 4)],
}  # fmt: skip
GROWN: dict[str, list[Slot]] = {
    **ABSENT, **dict.fromkeys(("llama-gqa", "mistral", "qwen3"), [(0, 3), (0, 5), (1, 0)]), "llama": [(0, 0), (0, 4)],
}  # fmt: skip


def itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def train(state: TrialState, seeds: Sequence[int], lr: float = 0.01) -> None:
    for seed in seeds:
        tokens = some_tokens(4, seed=seed)
        mean_loss(state.model(tokens), tokens).backward()
        state.optimizer.step(lr)
        state.optimizer.zero_grad()


def pruned(kind: str, seed: int = 0) -> TrialState:
    model = tiny_model(kind, seed=seed)
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.1)
    state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
    train(state, range(10, 13))
    state.remove_heads(ABSENT[kind], None)
    state.refresh()
    return state


def batches() -> list[Any]:
    return [causal(some_tokens(4, seed=seed)) for seed in (70, 71)]


def sources_of(state: TrialState) -> Sources:
    return Sources(
        taylor=probe(state.model, batches(), state.head_map, itself).taylor,
        stored=state.stored,
        directions=value_directions(state.model, batches(), state.head_map, itself, causal=True),
    )


def grow(state: TrialState, slots: Sequence[Slot], init: str, **options: Any) -> Sources:
    sources = sources_of(state)
    state.add_heads(slots, cycle=1)
    state.initialise_new_heads(slots, registry.build("init", init, options), "key", sources)
    state.refresh()
    return sources


def logits(state: TrialState) -> torch.Tensor:
    with torch.no_grad():
        return state.model(some_tokens())


def gradients(state: TrialState, seed: int = 80) -> dict[str, torch.Tensor]:
    tokens = some_tokens(4, seed=seed)
    state.optimizer.zero_grad()
    mean_loss(state.model(tokens), tokens).backward()
    found = {name: parameter.grad.clone() for name, parameter in state.model.network.named_parameters()}
    state.optimizer.zero_grad()
    return found


def head_first(kind: str, state: TrialState, slot: Slot, role: str) -> list[torch.Tensor]:
    """Return a head's tensors of a role, (head_dim, ...), by the places written out by hand."""
    return [at(state.model, place).movedim(place[1], 0) for place in head_places(kind, state.model, *slot)[role]]


# Life.


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", DECODERS)
def test_all_four_matrices_have_gradients_after_three_steps_under_every_init(kind: str, init: str) -> None:
    state = pruned(kind)
    grow(state, GROWN[kind], init)
    assert dead_heads(state.model, batches(), state.head_map, GROWN[kind], itself) == []
    train(state, range(50, 53))
    found = gradients(state)
    for slot in GROWN[kind]:
        for role, places in head_places(kind, state.model, *slot).items():
            name, dim, where = places[0]
            assert (found[name].narrow(dim, where.start, len(where)) != 0).float().mean() > 0.9, (slot, role)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_head_of_zeros_is_found_dead_among_living_ones(kind: str) -> None:
    state = pruned(kind)
    grow(state, GROWN[kind], "small_random")
    slot = GROWN[kind][-1]
    for role in ("query", "output"):
        for view in head_first(kind, state, slot, role):
            view.zero_()
    if kind not in ("llama-gqa", "llama-mqa"):
        assert dead_heads(state.model, batches(), state.head_map, GROWN[kind], itself) == []  # its values still speak
        for role in ("key", "value"):
            for view in head_first(kind, state, slot, role):
                view.zero_()
        assert dead_heads(state.model, batches(), state.head_map, GROWN[kind], itself) == [slot]
    assert dead_heads(state.model, [], state.head_map, GROWN[kind], itself) == GROWN[kind]  # nothing was seen alive
    assert dead_heads(state.model, [], state.head_map, GROWN[kind], lambda alive: alive + 1) == []  # another rank saw
    assert all(parameter.grad is None for parameter in state.model.parameters())


# Split.


@pytest.mark.parametrize("kind", DECODERS)
def test_a_child_copies_its_donor_and_both_halves_add_up_to_what_the_donor_had(kind: str) -> None:
    state = pruned(kind)
    before, moments = weights_of(state.model), {n: t.clone() for n, t in state.optimizer.state_tensors().items()}
    taylor = probe(state.model, batches(), state.head_map, itself).taylor
    slot = GROWN[kind][0]
    ((_, donor),) = donors_of(state.model.sites, state.head_map, [slot], taylor).items()
    original = head_first(kind, state, donor, "output")[0].clone()
    old = logits(state)
    grow(state, [slot], "split", noise=0.7)
    for role in ("query", "key", "value"):
        pairs = zip(head_first(kind, state, slot, role), head_first(kind, state, donor, role), strict=True)
        assert all(torch.equal(child, parent) for child, parent in pairs), role
    child, parent = head_first(kind, state, slot, "output")[0], head_first(kind, state, donor, "output")[0]
    torch.testing.assert_close(child + parent, original, rtol=0, atol=1e-15)
    assert float((child - original / 2).std()) == pytest.approx(0.7 * state.model.initializer_range, rel=0.35)
    torch.testing.assert_close(logits(state), old, rtol=0, atol=1e-12)
    changed = {name for name, weights in weights_of(state.model).items() if not torch.equal(weights, before[name])}
    assert changed <= {place[0] for places in head_places(kind, state.model, *slot).values() for place in places}
    assert all(
        torch.equal(t, moments[n]) for n, t in state.optimizer.state_tensors().items()
    )  # the donor keeps its own
    train(state, range(60, 64))  # and the symmetry is broken: the two go different ways
    for role in ("query",) if kind in ("llama-gqa", "llama-mqa") else ("query", "value"):
        apart = head_first(kind, state, slot, role)[0] - head_first(kind, state, donor, role)[0]
        assert float(apart.abs().max()) > 1e-4, role


def test_without_noise_twins_would_never_part_so_it_is_refused() -> None:
    ((option, value, _),) = registry.option_faults("init", "split", {"noise": 0})
    assert (option, value) == ("noise", 0)


@pytest.mark.parametrize("kind", DECODERS)
def test_splitting_one_head_again_and_again_still_preserves_the_function(kind: str) -> None:
    """More new heads than donors: the layer has a single head left."""
    model = tiny_model(kind)
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.1)
    state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
    others = [(1, head) for head in range(1, model.shape[1])]
    state.remove_heads(others, None)
    state.refresh()
    old = logits(state)
    grow(state, others, "split")
    torch.testing.assert_close(logits(state), old, rtol=0, atol=1e-12)
    assert dead_heads(state.model, batches(), state.head_map, others, itself) == []


def test_donors_are_the_heads_with_the_largest_scores_one_for_each_new_head() -> None:
    sites = tiny_model("llama").sites
    before = HeadMap.full(3, 5).without([(1, 0), (1, 4), (2, 2)])
    taylor = np.array([[0.0] * 5, [9.0, 0.2, 0.7, 0.7 + 1e-13, 9.0], [0.1, 0.5, 9.0, 0.3, 0.4]])
    donors = donors_of(sites, before, [(2, 2), (1, 4), (1, 0)], taylor)
    assert donors == {(1, 0): (1, 2), (1, 4): (1, 3), (2, 2): (2, 1)}
    crowded = HeadMap.full(3, 5).without([(1, 0), (1, 1), (1, 2), (1, 3)])
    assert set(donors_of(sites, crowded, [(1, 0), (1, 2), (1, 3)], taylor).values()) == {(1, 4)}


def test_donors_of_grouped_queries_stay_in_the_group_or_in_one_group_for_one_that_is_gone() -> None:
    sites = tiny_model("llama-gqa").sites
    taylor = np.tile(np.arange(9.0), (3, 1))  # the last head is the best
    lives = HeadMap.full(3, 9).without([(0, 3), (0, 4)])
    assert donors_of(sites, lives, [(0, 3), (0, 4)], taylor) == {(0, 3): (0, 5), (0, 4): (0, 5)}
    gone = HeadMap.full(3, 9).without([(0, 3), (0, 4), (0, 5), (0, 7)])
    donors = donors_of(sites, gone, [(0, 3), (0, 4), (0, 5)], taylor)
    assert donors == {(0, 3): (0, 8), (0, 4): (0, 6), (0, 5): (0, 8)}


def test_a_layer_without_a_present_head_has_nothing_to_split() -> None:
    sites = tiny_model("gpt2").sites
    empty = HeadMap.full(3, 3).without([(1, 0), (1, 1), (1, 2)])
    with pytest.raises(TrialError, match="layer 1 has no present head to split"):
        donors_of(sites, empty, [(1, 0)], np.zeros((3, 3)))


# Rewind.


@pytest.mark.parametrize("kind", DECODERS)
def test_rewinding_at_once_undoes_a_prune_bit_for_bit(kind: str) -> None:
    state = pruned(kind)
    trained = pruned_without_the_prune(kind)
    grow(state, ABSENT[kind], "rewind")
    assert all(torch.equal(weights, trained[name]) for name, weights in weights_of(state.model).items())


def pruned_without_the_prune(kind: str) -> dict[str, torch.Tensor]:
    state = TrialState(
        model=(model := tiny_model(kind)),
        optimizer=SliceAdamW(dict(model.network.named_parameters()), 0.1),
        head_map=HeadMap.full(*model.shape),
    )
    train(state, range(10, 13))
    return weights_of(state.model)


@pytest.mark.parametrize("kind", DECODERS)
def test_rewinding_brings_back_the_weights_of_the_last_prune_and_not_of_an_earlier_one(kind: str) -> None:
    state = pruned(kind)
    grow(state, ABSENT[kind], "rewind")
    train(state, range(20, 24))
    adapted = weights_of(state.model)
    state.remove_heads(ABSENT[kind], None)
    state.refresh()
    train(state, range(24, 27))
    rest = weights_of(state.model)
    grow(state, GROWN[kind], "rewind")
    for part in state.new_slices:
        found = state.model.network.get_parameter(part.parameter).detach().narrow(part.dim, part.start, part.length)
        assert torch.equal(found, adapted[part.parameter].narrow(part.dim, part.start, part.length)), part
        rest[part.parameter].narrow(part.dim, part.start, part.length).copy_(found)
    assert all(torch.equal(weights, rest[name]) for name, weights in weights_of(state.model).items())
    assert not any(
        state.optimizer.state_tensors()[f"{part.parameter}/{moment}"].narrow(part.dim, part.start, part.length).any()
        for part in state.new_slices for moment in ("exp_avg", "exp_avg_sq")
    )  # fmt: skip


def test_a_slot_that_nothing_is_stored_of_can_not_be_rewound() -> None:
    state = pruned("gpt2")
    state.stored.clear()
    state.add_heads([(0, 1)], cycle=1)
    with pytest.raises(TrialError, match=r"no weights are stored for transformer\.h\.0.*another cycle\.grow\.init"):
        state.initialise_new_heads([(0, 1)], registry.build("init", "rewind"), "key")


@pytest.mark.parametrize("kind", DECODERS)
def test_a_prune_and_a_growth_name_all_that_they_changed_and_no_more(kind: str) -> None:
    state = pruned(kind)
    assert set(state.changed) == set(state.stored)
    before = weights_of(state.model)
    grow(state, GROWN[kind], "split")
    for part, weights in state.changed.items():
        before[part.parameter].narrow(part.dim, part.start, part.length).copy_(weights)
        assert slice_named(slice_name(part)) == part
    assert all(torch.equal(weights, before[name]) for name, weights in weights_of(state.model).items())
    assert {part.role for part in set(state.changed) - set(state.new_slices)} == {"output"}


# GradMax.


def with_uniform_attention(kind: str, state: TrialState, slots: Sequence[Slot]) -> None:
    for slot in slots:
        for view in head_first(kind, state, slot, "query"):
            view.zero_()


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_the_gradient_of_new_output_weights_is_as_large_as_the_singular_values_say(kind: str) -> None:
    """Two new heads of one layer: the first gets the first block, the second the second."""
    model = tiny_model(kind)
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.1)
    state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
    slots: list[Slot] = [(1, 0), (1, 2)]
    state.remove_heads(slots, None)
    state.refresh()
    scale = float(torch.cat([head_first(kind, state, (1, int(head)), "value")[0].norm(dim=1)
                             for head in np.flatnonzero(state.head_map.present[1])]).mean())  # fmt: skip
    sources = grow(state, slots, "gradmax")
    with_uniform_attention(kind, state, slots)
    tokens = torch.cat([some_tokens(4, seed=seed) for seed in (70, 71)])
    (place, *_) = head_places(kind, model, 1, 0)["output"]
    (gradient,) = torch.autograd.grad(mean_loss(model(tokens), tokens), [model.network.get_parameter(place[0])])
    width = model.sites[1].head_dim
    for block, slot in enumerate(slots):
        rows = head_first(kind, state, slot, "value")[0]
        torch.testing.assert_close(rows @ rows.T, scale**2 * torch.eye(width, dtype=rows.dtype), rtol=0, atol=1e-9)
        ((_, dim, where),) = head_places(kind, model, *slot)["output"]
        found = float(gradient.narrow(dim, where.start, len(where)).square().sum())
        expected = float(sources.directions[1].gains[block * width : (block + 1) * width].sum()) * scale**2
        assert found == pytest.approx(expected, rel=1e-8), slot
        for role in ("query", "key", "value", "output"):
            assert not any(bias.any() for bias in head_first(kind, state, slot, role)[1:])


def test_no_random_orthonormal_values_give_a_larger_gradient() -> None:
    state = pruned("gpt2")
    sources = grow(state, [(0, 1)], "gradmax")
    with_uniform_attention("gpt2", state, [(0, 1)])
    weights, _ = head_first("gpt2", state, (0, 1), "value")
    scale = float(weights.norm(dim=1).mean())
    best = output_gradient(state)
    assert best == pytest.approx(scale * float(sources.directions[0].gains[: len(weights)].sum().sqrt()), rel=1e-8)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        drawn = torch.randn(weights.T.shape, generator=generator, dtype=weights.dtype)
        weights.copy_(scale * torch.linalg.qr(drawn).Q.T)
        assert output_gradient(state) < best


def output_gradient(state: TrialState) -> float:
    tokens = torch.cat([some_tokens(4, seed=seed) for seed in (70, 71)])
    ((name, dim, where),) = head_places("gpt2", state.model, 0, 1)["output"]
    (gradient,) = torch.autograd.grad(
        mean_loss(state.model(tokens), tokens), [state.model.network.get_parameter(name)]
    )  # fmt: skip
    return float(gradient.narrow(dim, where.start, len(where)).norm())


def test_a_living_group_keeps_its_key_and_value_and_one_that_returns_gets_directions() -> None:
    state = pruned("llama-gqa")
    sources = sources_of(state)
    before = weights_of(state.model)
    grow(state, [(0, 3), (0, 5), (1, 0)], "gradmax")
    name = "model.layers.{}.self_attn.{}_proj.weight"
    for role in ("k", "v"):
        assert torch.equal(state.model.network.get_parameter(name.format(1, role)).data, before[name.format(1, role)])
    rows = state.model.network.get_parameter(name.format(0, "v")).data[4:8]
    directions = sources.directions[0].vectors[:4]
    torch.testing.assert_close(rows / rows.norm(dim=1, keepdim=True), directions, rtol=0, atol=1e-9)


def test_more_new_heads_than_there_are_directions_are_refused() -> None:
    model = tiny_model("llama")  # 5 heads of 6 in a width of 20
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.1)
    state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
    slots: list[Slot] = [(1, 0), (1, 1), (1, 2), (1, 3)]
    state.remove_heads(slots, None)
    state.refresh()
    with pytest.raises(TrialError, match="layer 1 has 20 directions, not enough for 4 new values of 6"):
        grow(state, slots, "gradmax")


def test_a_layer_without_a_present_head_has_no_scale_of_values() -> None:
    model = tiny_model("gpt2")
    optimizer = SliceAdamW(dict(model.network.named_parameters()), 0.1)
    state = TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))
    slots: list[Slot] = [(1, 0), (1, 1), (1, 2)]
    state.remove_heads(slots, None)
    state.refresh()
    with pytest.raises(TrialError, match="layer 1 has no present head to take the scale"):
        grow(state, slots[:1], "gradmax")
    assert head_map_without(model, *slots).active == 6
