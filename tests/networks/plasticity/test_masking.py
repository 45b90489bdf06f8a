"""A gate masks a head exactly: open gates change nothing, closed ones equal removal, and sites hold what they claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    DECODERS,
    KINDS,
    RECURRENT,
    WITH_ROTATION,
    arguments_of,
    at,
    auto_class,
    causal,
    compacted,
    family_of,
    head_map_without,
    head_places,
    slots_in,
    some_batch,
    some_tokens,
    tiny_model,
    weights_of,
)
from transformers import AutoModelForCausalLM

from raysweep.contracts import AttentionSite, Role
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.insertion import Sources, insert
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of
from raysweep.networks.plasticity.parity import check_parity

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
ROLES: tuple[Role, ...] = ("query", "key", "value", "output")


def logits_with(kind: str, model: PlasticModel, head_map: HeadMap) -> torch.Tensor:
    model.set_gates(head_map)
    with torch.no_grad():
        return logits_of(model, some_batch(kind))


def encodes(size: str) -> bool:
    return registry.load("models", scratch_sizes()[size]).tasks[0] != "causal_lm"


def full(model: PlasticModel) -> HeadMap:
    return HeadMap.full(*model.shape)


# Open gates.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_open_gates_leave_the_logits_of_plain_transformers_bitwise_alone(kind: str, attention: str) -> None:
    model = tiny_model(kind, attention=attention)
    plain = auto_class(kind).from_config(model.network.config, attn_implementation=attention).double().eval()
    plain.load_state_dict(model.network.state_dict())
    batch = some_batch(kind)
    with torch.no_grad():
        expected = plain(**arguments_of(plain, batch)).logits
        assert torch.equal(logits_with(kind, model, full(model)), expected)
        with model.replaced_gates([torch.ones(model.shape[1]) for _ in model.sites]):  # multiplied, not skipped
            assert torch.equal(logits_of(model, batch), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_correct_model_passes_the_parity_check_and_is_left_as_it_was(kind: str) -> None:
    model = tiny_model(kind, dtype=torch.float32)
    before = weights_of(model)
    model.train()
    check_parity(model, some_batch(kind), causal=kind in DECODERS)
    assert model.training
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())
    assert [gate.values for gate in model.gates] == [None] * len(model.gates)


@pytest.mark.parametrize("size", [size for size in scratch_sizes() if size.endswith("-nano") and not encodes(size)])
def test_the_parity_check_passes_on_fresh_from_scratch_models(size: str) -> None:
    family = registry.build("models", scratch_sizes()[size])
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(family.config(size, vocab_size=64, seq_len=16)).eval()
    check_parity(PlasticModel(network, family.sites(network)), causal(some_tokens(2, 16)), causal=True)


# The parity check bites.


def test_parity_check_refuses_a_network_that_sees_later_tokens() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    model.network.transformer.ln_f.register_forward_hook(lambda _, __, out: out + 0.01 * out.mean(1, keepdim=True))
    with pytest.raises(ModelError, match="not causal"):
        check_parity(model, causal(some_tokens()), causal=True)


WRONG_SITES: dict[str, tuple[str, Callable[[Any, AttentionSite], AttentionSite]]] = {
    "another module of the same width": ("opt", lambda net, s: replace(
        s, projection=net.model.decoder.layers[s.layer].self_attn.q_proj)),
    "a module that never runs": ("opt", lambda net, s: replace(s, projection=torch.nn.Linear(21, 21))),
    "output slices off by one": ("llama", lambda net, s: replace(
        s, output=[(n, d, o + 1) for n, d, o in s.output])),
    "output slices transposed": ("gpt2", lambda net, s: replace(s, output=[(n, 1 - d, o) for n, d, o in s.output])),
    "values where keys of another layer are": ("opt", lambda net, s: replace(
        s, value=[(n.replace(f"layers.{s.layer}", "layers.0"), d, o) for n, d, o in s.value])),
    "query slices that skip a head": ("llama-gqa", lambda net, s: s if s.layer else replace(
        s, query=[(n, d, o + s.head_dim) for n, d, o in s.query])),
    "values of gpt2 at the keys' rows": ("gpt2", lambda net, s: replace(
        s, value=[(n, 0 if n.endswith("weight") else d, 0) for n, d, _ in s.value])),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_SITES)
def test_parity_check_refuses_wrong_sites(fault: str) -> None:
    kind, plant = WRONG_SITES[fault]
    network = tiny_model(kind, dtype=torch.float32).network
    clean = AutoModelForCausalLM.from_config(network.config).eval()
    clean.load_state_dict(network.state_dict())
    model = PlasticModel(clean, [plant(clean, site) for site in family_of(kind).sites(clean)])
    with pytest.raises(ModelError, match="sites"):
        check_parity(model, causal(some_tokens()), causal=True)


# Closed gates.


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_gate_equals_zeroing_the_rows_of_the_output_projection(kind: str) -> None:
    model = tiny_model(kind)
    for layer in range(model.shape[0]):
        for head in range(model.shape[1]):
            closed = logits_with(kind, model, head_map_without(model, (layer, head)))
            whole = logits_with(kind, model, full(model))
            assert (closed - whole).abs().max() > 1e-3  # the head matters, or nothing would be shown
            (place,) = head_places(kind, model, layer, head)["output"]
            held = at(model, place).clone()
            at(model, place).zero_()
            torch.testing.assert_close(logits_with(kind, model, full(model)), closed, **EXACT)
            at(model, place).copy_(held)


UNEVEN = ((0, 0), (0, 2), (1, 1), (2, 0), (2, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_closed_gates_equal_a_physically_smaller_network(kind: str) -> None:
    model = tiny_model(kind)
    head_map = head_map_without(model, *slots_in(model, UNEVEN))
    masked = logits_with(kind, model, head_map)
    with torch.no_grad():
        smaller = compacted(kind, model, head_map)
        smaller = smaller(**arguments_of(smaller, some_batch(kind))).logits
    assert (masked - logits_with(kind, model, full(model))).abs().max() > 1e-3
    torch.testing.assert_close(masked, smaller, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_all_heads_closed_leave_exactly_the_output_bias(kind: str) -> None:
    model = tiny_model(kind)
    seen: list[torch.Tensor] = []
    for site in model.sites:
        site.projection.register_forward_hook(lambda _, __, output: seen.append(output))
    model.set_gates(HeadMap.full(*model.shape).without(np.ndindex(*model.shape)))
    with torch.no_grad():
        logits_of(model, some_batch(kind))
    steps = len(seen) // len(model.sites)
    assert steps == (model.network.config.num_steps if kind in RECURRENT else 1)
    for site, output in zip(model.sites * steps, seen, strict=True):
        bias = dict(site.projection.named_parameters()).get("bias")
        expected = torch.zeros(output.shape[-1], dtype=torch.float64) if bias is None else bias.detach()
        torch.testing.assert_close(output, expected.expand_as(output), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_heads_in_two_steps_or_another_order_is_the_same(kind: str) -> None:
    model = tiny_model(kind)
    slots = slots_in(model, UNEVEN)
    once = logits_with(kind, model, full(model).without(slots))
    twice = logits_with(kind, model, full(model).without(slots[3:]).without(reversed(slots[:3])))
    assert torch.equal(once, twice)


def test_a_partly_open_gate_scales_the_contribution_of_its_head_alone() -> None:
    model = tiny_model("opt")
    head_map = head_map_without(model, (1, 2))
    model.set_gates(head_map, {(1, 0): 0.25})
    assert [gate.values is None for gate in model.gates] == [True, False, True]
    values = model.gates[1].values
    assert values is not None and values.tolist() == [0.25, 1.0, 0.0]
    with torch.no_grad():
        gated = logits_of(model, some_batch("opt"))
    (place,) = head_places("opt", model, 1, 0)["output"]
    at(model, place).mul_(0.25)
    torch.testing.assert_close(logits_with("opt", model, head_map), gated, **EXACT)


# Slices.


@pytest.mark.parametrize("kind", KINDS)
def test_slices_are_where_the_family_keeps_its_heads(kind: str) -> None:
    model = tiny_model(kind)
    for layer, site in enumerate(model.sites):
        for head in range(site.num_heads):
            found: dict[str, set[tuple[str, int, int, int]]] = {role: set() for role in ROLES}
            for part in site.head_slices(head) + (site.group_slices(site.group_of(head)) if site.grouped else []):
                found[part.role].add((part.parameter, part.dim, part.start, part.length))
            for role, places in head_places(kind, model, layer, head).items():
                assert found[role] == {(name, dim, where.start, len(where)) for name, dim, where in places}


@pytest.mark.parametrize("kind", KINDS)
def test_each_slice_matters_while_its_gate_is_open_and_to_no_one_once_it_is_closed(kind: str) -> None:
    """Perturb the slices of one head (with grouped queries, of all heads of one group) in every role."""
    model = tiny_model(kind)
    site, group = model.sites[-2:][0], 0
    heads = [head for head in range(site.num_heads) if site.group_of(head) == group]
    closed_map = head_map_without(model, *((site.layer, head) for head in heads))
    open_before, closed_before = logits_with(kind, model, full(model)), logits_with(kind, model, closed_map)
    for part in [p for head in heads for p in site.head_slices(head)] + (
        site.group_slices(group) if site.grouped else []
    ):
        view = model.network.get_parameter(part.parameter).data.narrow(part.dim, part.start, part.length)
        held = view.clone()
        view.add_(torch.randn(view.shape, generator=torch.Generator().manual_seed(1), dtype=view.dtype))
        changed = (logits_with(kind, model, full(model)) - open_before).abs().max()
        # Softmax does not feel a constant added to all keys, unless rotation makes it differ from key to key.
        unfelt = part.role == "key" and part.parameter.endswith("bias") and kind not in WITH_ROTATION
        assert changed < 1e-9 if unfelt else changed > 1e-4, part
        assert torch.equal(logits_with(kind, model, closed_map), closed_before), part
        view.copy_(held)


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-mqa"])
def test_a_shared_key_or_value_belongs_to_no_single_query_head(kind: str) -> None:
    site = tiny_model(kind).sites[0]
    assert {part.role for head in range(site.num_heads) for part in site.head_slices(head)} == {"query", "output"}
    assert [site.group_of(head) for head in range(site.num_heads)] == (
        [0, 0, 0, 1, 1, 1, 2, 2, 2] if kind == "llama-gqa" else [0] * 5
    )


# Causality.


@pytest.mark.parametrize("kind", DECODERS)
def test_logits_never_depend_on_later_tokens_before_and_after_prune_and_grow(kind: str) -> None:
    model = tiny_model(kind)
    pruned = head_map_without(model, *slots_in(model, UNEVEN))
    grown = pruned.with_grown([(0, 0), (2, 1)], cycle=1)
    tokens = some_tokens()
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 5) % 48
    for head_map in (full(model), pruned, grown):
        if head_map is grown:
            insert(model, pruned, [(0, 0), (2, 1)], registry.build("init", "small_random"), "key", Sources())
        model.set_gates(head_map)
        with torch.no_grad():
            first, second = model(tokens), model(changed)
        assert torch.equal(first[:, :7], second[:, :7])
        assert (first[:, 7:] - second[:, 7:]).abs().max() > 1e-3
