"""Per-token gates: identity when open, exact in their account of FLOPs, causal, and nothing but routers learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.helpers import DECODERS, head_map_without, some_tokens, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from raysweep.networks.plasticity.accounting import flops_per_token
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.routing import HardGate, HeadRouters, gated_flops


def routers_of(model: PlasticModel, *absent: tuple[int, int]) -> HeadRouters:
    return HeadRouters(model, head_map_without(model, *absent))


def linears(routers: HeadRouters) -> list[torch.nn.Linear]:
    return [layer for layer in routers.layers if isinstance(layer, torch.nn.Linear)]


def random_routers(model: PlasticModel, *absent: tuple[int, int]) -> HeadRouters:
    routers = routers_of(model, *absent)
    generator = torch.Generator().manual_seed(1)
    for layer in linears(routers):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        layer.bias.data.zero_()
    return routers


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_open_gates_change_no_bit(kind: str) -> None:
    model = tiny_model(kind)
    plain, routers = model(some_tokens()), random_routers(model)
    with routers.routing(-math.inf):
        assert torch.equal(model(some_tokens()), plain)
    assert routers.open_share() == 1.0
    with routers.routing():
        assert not torch.equal(model(some_tokens()), plain)
    assert torch.equal(model(some_tokens()), plain) and all(gate.values is None for gate in model.gates)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_all_closed_is_no_attention_at_all(kind: str) -> None:
    model = tiny_model(kind)
    routers = random_routers(model)
    with routers.routing(math.inf):
        closed = model(some_tokens())
    model.set_gates(HeadMap(np.full(model.shape, -1)))
    assert torch.equal(closed, model(some_tokens())) and routers.open_share() == 0.0


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_a_gate_is_of_its_token_and_head(kind: str) -> None:
    """A router planted in the first layer closes head 1 exactly where it should: compare with gates set by hand."""
    model = tiny_model(kind)
    routers, tokens = random_routers(model), some_tokens()
    with routers.routing():
        routed = model(tokens)
        gates = [gate.values.clone() for gate in model.gates if gate.values is not None]
    assert len(gates) == len(model.gates)
    assert all(values.shape == (2, 12, model.shape[1]) and 0 < values.mean() < 1 for values in gates)
    with model.replaced_gates(gates):
        assert torch.equal(model(tokens), routed)
    inputs = []
    hook = model.sites[0].attention.register_forward_pre_hook(
        lambda _, args, options: inputs.append(args[0] if args else options["hidden_states"]), with_kwargs=True
    )
    model(tokens)
    hook.remove()
    assert torch.equal(gates[0], (routers.layers[0](inputs[0]) > 0).double())


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(kind: str) -> None:
    model = tiny_model(kind)
    tokens = some_tokens()
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 48
    with random_routers(model).routing():
        difference = (model(changed) - model(tokens)).abs()
    assert difference[:, :7].max() == 0 and difference[:, 7:].max() > 1e-3


@torch.no_grad()
def test_absent_heads_stay_closed() -> None:
    model = tiny_model("gpt2")
    model.set_gates(head_map_without(model, (0, 1), (2, 2)))
    plain, routers = model(some_tokens()), random_routers(model, (0, 1), (2, 2))
    with routers.routing(-math.inf):
        assert torch.equal(model(some_tokens()), plain)
    assert routers.open_share() == 1.0 and routers.opened[0, 1] == routers.opened[2, 2] == 0
    assert torch.equal(model(some_tokens()), plain)


# What it costs.


def planted(model: PlasticModel) -> HeadRouters:
    """Layer 0 closes head 1, layer 1 nothing, layer 2 all but head 0: whatever the token."""
    routers = routers_of(model)
    for layer, closed in ((0, [1]), (1, []), (2, list(range(1, model.shape[1])))):
        linears(routers)[layer].bias.data[closed] = -1.0
    return routers


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_the_account_of_a_planted_router_is_exact(kind: str) -> None:
    model = tiny_model(kind)
    routers, (layers, heads), site = planted(model), model.shape, model.sites[0]
    with routers.routing():
        model(some_tokens())
        model(some_tokens(seed=1))
    closed = heads
    width = model.network.config.hidden_size
    saved = closed * (4 * width * site.head_dim + 4 * 12 * site.head_dim)
    added = layers * 2 * width * heads
    full = flops_per_token(model, HeadMap.full(*model.shape), 12)
    assert routers.flops_per_token(12) == pytest.approx(full - saved + added, rel=1e-12)
    assert routers.open_share() == pytest.approx(1 - closed / (layers * heads), rel=1e-12)
    assert routers.tokens == 48


@torch.no_grad()
def test_what_closing_saves_is_what_the_flop_counter_counts() -> None:
    """Of one head that is gone, all but its keys and values: those later tokens need."""
    model = tiny_model("gpt2", attention="eager")
    gone = head_map_without(model, (0, 0))
    static = flops_per_token(model, HeadMap.full(*model.shape), 12) - flops_per_token(model, gone, 12)
    keys_and_values = 2 * 2 * 15 * 5
    assert gated_flops(model, model.sites[0], 12) == static - keys_and_values
    routers = routers_of(model)
    with FlopCounterMode(display=False) as counter, routers.routing(-math.inf):
        model(some_tokens())
    assert counter.get_total_flops() / 24 == routers.flops_per_token(12)


@torch.no_grad()
def test_the_expected_share_is_that_of_present_heads_weighted_by_cost() -> None:
    model = tiny_model("opt")
    routers = routers_of(model, (1, 0))
    for layer in linears(routers):
        layer.bias.data.zero_()
    linears(routers)[2].bias.data.fill_(50.0)
    with routers.routing():
        model(some_tokens())
    assert float(routers.expected_share(12)) == pytest.approx((3 * 0.5 + 2 * 0.5 + 3) / 8)


# How it learns.


def test_a_hard_gate_is_hard_forward_and_soft_backward() -> None:
    logits = torch.tensor([-1.0, 0.0, 0.5, 2.0], requires_grad=True)
    gates = HardGate.apply(logits, 0.5)
    assert gates.tolist() == [0, 0, 0, 1]
    gates.sum().backward()
    soft = torch.sigmoid(logits.detach() - 0.5)
    assert logits.grad is not None and torch.equal(logits.grad, soft * (1 - soft))


def test_every_router_gets_a_gradient_and_the_frozen_network_none() -> None:
    model = tiny_model("llama-gqa")
    model.requires_grad_(False)
    routers = random_routers(model)
    with routers.routing():
        model(some_tokens()).square().mean().backward()
    gradients = [layer.weight.grad for layer in linears(routers)]
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {id(parameter) for parameter in routers.parameters()}.isdisjoint(map(id, model.parameters()))
