"""Head statistics equal slow, explicit computations, and measuring them changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    DECODERS,
    IMAGES,
    KINDS,
    arguments_of,
    at,
    causal,
    head_map_without,
    head_places,
    label_loss,
    parts_of,
    recorded,
    replied,
    rows_of,
    slots_in,
    some_batch,
    some_tokens,
    tiny_model,
    weights_of,
)
from torch.func import functional_call

from raysweep.contracts import Array, Batch, HeadStatistics
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.insertion import Sources, propose
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of
from raysweep.networks.plasticity.probe import probe

ABSENT = ((0, 1), (1, 0), (1, 2), (2, 2))
MEASURED = (
    "taylor", "fisher", "signed_taylor", "entropy", "sink_mass", "sink_free_entropy", "output_norm",
    "magnitude", "magnitude_ov", "magnitude_qk",
)  # fmt: skip


def probed(model: PlasticModel, batch: Batch, head_map: HeadMap, **options: Any) -> HeadStatistics:
    model.set_gates(head_map)
    return probe(model, parts_of(batch, 2), head_map, lambda tensor: tensor, **options)


def output_places(kind: str, model: PlasticModel) -> list[list[tuple[str, int, range]]]:
    layers, heads = model.shape
    return [[head_places(kind, model, layer, head)["output"][0] for head in range(heads)] for layer in range(layers)]


def logits_with_gates(kind: str, model: PlasticModel, gates: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Apply gates without hooks: scale each head's part of the output projection's weight."""
    scaled = {}
    for layer, row in enumerate(output_places(kind, model)):
        name, dim, _ = row[0]
        weight = model.network.get_parameter(name).detach()
        wide = gates[layer].repeat_interleave(model.sites[layer].head_dim)
        scaled[name] = weight * (wide[:, None] if dim == 0 else wide)
    model.set_gates(HeadMap.full(*model.shape))
    return functional_call(model.network, scaled, kwargs=arguments_of(model.network, batch)).logits


def gate_gradients(kind: str, model: PlasticModel, head_map: HeadMap, batch: Batch, signed: bool = False) -> Array:
    """Return |d(mean loss) / d(gate)|, or with its sign, of every example, (examples, layers, heads): one pass each."""
    found = []
    for example in parts_of(batch, 1):
        gates = torch.from_numpy(head_map.present).double().requires_grad_()
        label_loss(logits_with_gates(kind, model, gates, example), example).backward()
        assert gates.grad is not None
        found.append(gates.grad.numpy() if signed else gates.grad.abs().numpy())
    return np.stack(found)


def maps_and_outputs(model: PlasticModel, head_map: HeadMap, batch: Batch) -> tuple[list[Any], list[Any]]:
    """Return attention weights (batch, heads, queries, keys) and head outputs before the gate, of each layer.

    Of a layer that serves at several steps: one step after the other along the batch.
    """
    outputs: list[list[torch.Tensor]] = [[] for _ in model.sites]
    inputs: list[list[torch.Tensor]] = [[] for _ in model.sites]
    hooks = [
        hook
        for site, seen, read in zip(model.sites, outputs, inputs, strict=True)
        for hook in (
            site.projection.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]), prepend=True),
            site.attention.register_forward_pre_hook(lambda _, given, read=read: read.extend(given[:1])),
        )
    ]
    model.set_gates(head_map)
    with torch.no_grad():
        maps = model.network(**arguments_of(model.network, batch), output_attentions=True).get("attentions")
    for hook in hooks:
        hook.remove()
    if maps is None:
        maps = [attention_by_hand(site, torch.cat(read)) for site, read in zip(model.sites, inputs, strict=True)]
    return maps, [
        torch.cat(seen).unflatten(-1, (site.num_heads, site.head_dim))
        for seen, site in zip(outputs, model.sites, strict=True)
    ]


@torch.no_grad()
def attention_by_hand(site: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return the attention weights of a PNN's layer without padding."""
    query, key = (
        projection(hidden).unflatten(-1, (site.num_heads, site.head_dim)).transpose(1, 2)
        for projection in (site.attention.q_proj, site.attention.k_proj)
    )
    return (query @ key.mT / site.head_dim**0.5).softmax(-1)


def lengths_of(kind: str, batch: Batch) -> list[int]:
    """Return how many tokens of each example are no padding."""
    if kind in IMAGES:
        return [7] * len(batch.labels)  # 3 x 2 patches and the class
    mask = torch.ones_like(batch.inputs) if batch.attention_mask is None else batch.attention_mask
    return mask.sum(1).tolist()


# Equal to explicit computations.


@pytest.mark.parametrize("kind", KINDS)
def test_taylor_equals_one_backward_pass_for_each_window(kind: str) -> None:
    model, batch = tiny_model(kind, attention="eager"), some_batch(kind, 5)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    expected = gate_gradients(kind, model, head_map, batch)
    found = probed(model, batch, head_map).taylor
    np.testing.assert_allclose(found, expected.mean(0), rtol=1e-5)
    assert np.array_equal(probed(model, batch, head_map).present, head_map.present)


def test_taylor_averages_magnitudes_not_signed_gradients() -> None:
    """A head whose gate gradients cancel over windows still matters: checked against the cancelling mean."""
    model, batch = tiny_model("gpt2", attention="eager"), some_batch("gpt2", 6)
    gates = torch.ones(*model.shape, dtype=torch.float64, requires_grad=True)
    label_loss(logits_with_gates("gpt2", model, gates, batch), batch).backward()
    found = probed(model, batch, HeadMap.full(*model.shape)).taylor
    assert gates.grad is not None
    assert (found >= gates.grad.abs().numpy() * (1 - 1e-6)).all() and (found > 1.5 * gates.grad.abs().numpy()).any()


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_and_signed_taylor_are_moments_of_the_same_gradients(kind: str) -> None:
    model, batch = tiny_model(kind, attention="eager"), some_batch(kind, 5)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    signed = gate_gradients(kind, model, head_map, batch, signed=True)
    found = probed(model, batch, head_map)
    np.testing.assert_allclose(found.fisher, (signed**2).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.signed_taylor, -signed.mean(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gates_gradient_is_the_product_of_a_heads_output_and_its_gradient(kind: str) -> None:
    """dL/dg = sum over tokens of <dL/do, o>: Taylor without any gate (heads.md 2.3)."""
    model, batch = tiny_model(kind), some_batch(kind, 4)
    model.set_gates(HeadMap.full(*model.shape))
    outputs: list[torch.Tensor] = []
    hooks = [
        site.projection.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0])) for site in model.sites
    ]
    logits = logits_of(model, batch)
    for hook in hooks:
        hook.remove()
    loss = torch.stack([label_loss(logits[[row]], rows_of(batch, [row])) for row in range(4)]).sum()
    expected = np.zeros((4, *model.shape))
    for call, (output, gradient) in enumerate(zip(outputs, torch.autograd.grad(loss, outputs), strict=True)):
        site = model.sites[call % len(model.sites)]  # a layer that serves at several steps has them all added up
        by_head = (output * gradient).unflatten(-1, (site.num_heads, site.head_dim))
        expected[:, site.layer] += by_head.sum((1, 3)).detach().numpy()
    found = probed(model, batch, HeadMap.full(*model.shape))
    np.testing.assert_allclose(found.taylor, np.abs(expected).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.fisher, (expected**2).mean(0), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_sink_mass_equal_sums_over_explicit_attention_maps(kind: str) -> None:
    model, batch = tiny_model(kind, attention="eager"), some_batch(kind, 5, length=9)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    found = probed(model, batch, head_map)
    maps, _ = maps_and_outputs(model, head_map, batch)
    lengths = lengths_of(kind, batch) * (len(maps[0]) // len(batch.labels))
    for layer in range(model.shape[0]):
        for head in range(model.shape[1]):
            entropies, sinks = [], []
            for rows, length in zip(maps[layer][:, head].tolist(), lengths, strict=True):
                for query in range(1 if kind in DECODERS else 0, length):
                    visible = rows[query][: query + 1 if kind in DECODERS else length]
                    assert sum(visible) == pytest.approx(1.0)
                    entropies.append(-sum(p * math.log(p) for p in visible if p > 0) / math.log(len(visible)))
                    sinks.append(visible[0])
            assert found.entropy[layer, head] == pytest.approx(np.mean(entropies), rel=1e-6)
            assert found.sink_mass[layer, head] == pytest.approx(np.mean(sinks), rel=1e-6)
    assert (found.entropy >= 0).all() and (found.entropy <= 1 + 1e-7).all()


@pytest.mark.parametrize("kind", KINDS)
def test_output_norm_equals_the_mean_norm_of_each_contribution(kind: str) -> None:
    model, batch = tiny_model(kind, attention="eager"), some_batch(kind, 5)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    found = probed(model, batch, head_map).output_norm
    _, outputs = maps_and_outputs(model, head_map, batch)
    for layer, row in enumerate(output_places(kind, model)):
        for head, place in enumerate(row):
            weight = at(model, place) if place[1] == 0 else at(model, place).T
            norms = (outputs[layer][:, :, head] @ weight).norm(dim=-1)
            lengths = lengths_of(kind, batch) * (len(norms) // len(batch.labels))
            expected = torch.cat([row[:length] for row, length in zip(norms, lengths, strict=True)]).mean()
            assert found[layer, head] == pytest.approx(float(expected), rel=1e-7)  # eager softmax is fp32


def test_a_small_output_is_not_lost_beside_what_its_weights_could_write() -> None:
    """In fp32 the square of a small singular value drowns in the squares of the large ones."""
    model, batch = tiny_model("gpt2", dtype=torch.float32, attention="eager"), some_batch("gpt2", 5)
    width = model.sites[0].head_dim
    weight = model.network.transformer.h[0].attn.c_proj.weight.data[:width]
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    weight.copy_(left @ torch.diag(torch.tensor([3.0] * (width - 1) + [1e-4])) @ right)
    values = model.network.transformer.h[0].attn.c_attn
    values.weight.data[:, 2 * len(values.weight) :][:, :width] = 0.0
    values.bias.data[2 * len(values.weight) :][:width] = left[:, -1]  # every output is the least singular vector
    found = probed(model, batch, HeadMap.full(*model.shape)).output_norm[0, 0]
    assert found == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_follow_heads_that_change_places(kind: str) -> None:
    """Swap all slices of two heads (of one group): their scores swap, the others stay."""
    model, batch = tiny_model(kind, attention="eager"), some_batch(kind, 4)
    whole = HeadMap.full(*model.shape)
    before = probed(model, batch, whole)
    site = model.sites[-2:][0]  # the second of three, or the only one
    first, second = site.head_slices(0), site.head_slices(1)
    for one, other in zip(first, second, strict=True):
        weight = model.network.get_parameter(one.parameter).data
        a, b = (weight.narrow(part.dim, part.start, part.length) for part in (one, other))
        held = a.clone()
        a.copy_(b)
        b.copy_(held)
    after = probed(model, batch, whole)
    order = np.arange(model.shape[1])
    order[[0, 1]] = [1, 0]
    for name in MEASURED:
        expected = getattr(before, name).copy()
        expected[site.layer] = expected[site.layer][order]
        np.testing.assert_allclose(getattr(after, name), expected, rtol=1e-5, err_msg=name)
        first, second = expected[site.layer][:2]
        assert not np.isclose(first, second, rtol=1e-4), name


# Planted attention.


def plant_uniform(model: PlasticModel, layer: int, head: int) -> None:
    for role in ("query", "key"):
        for place in head_places("gpt2", model, layer, head)[role]:
            at(model, place).zero_()


def plant_sink(model: PlasticModel, head: int) -> None:
    """Make a head of layer 0 look only at token 0, which is to stand at the beginning of windows and nowhere else."""
    transformer = model.network.transformer
    with torch.no_grad():
        transformer.wpe.weight.zero_()
        transformer.wte.weight[:, 0] = -1.0
        transformer.wte.weight[0, 0] = 5.0
        transformer.h[0].ln_1.weight.fill_(1.0)
        transformer.h[0].ln_1.bias.zero_()
    plant_uniform(model, 0, head)
    places = head_places("gpt2", model, 0, head)
    at(model, places["query"][1])[0] = 100.0
    at(model, places["key"][0])[0, 0] = 100.0


@pytest.mark.parametrize("length", [2, 5, 12, 32])
def test_uniform_attention_has_entropy_one_and_a_single_key_entropy_zero_at_every_length(length: int) -> None:
    model = tiny_model("gpt2", attention="eager")
    plant_uniform(model, 1, 2)
    plant_sink(model, 1)
    tokens = some_tokens(3, length).clamp_min(1)
    tokens[:, 0] = 0
    found = probed(model, causal(tokens), HeadMap.full(*model.shape))
    assert found.entropy[1, 2] == pytest.approx(1.0, abs=1e-12)
    assert found.sink_mass[1, 2] == pytest.approx(np.mean([1 / seen for seen in range(2, length + 1)]))
    assert found.entropy[0, 1] == pytest.approx(0.0, abs=1e-12)
    assert found.sink_mass[0, 1] == pytest.approx(1.0, abs=1e-12)


# Sensitivity of absent slots.


@pytest.mark.parametrize("kind", KINDS)
def test_gate_sensitivity_is_the_gradient_at_a_closed_gate(kind: str) -> None:
    model, batch = tiny_model(kind, attention="eager"), some_batch(kind, 5)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    expected = gate_gradients(kind, model, head_map, batch).mean(0)
    found = probed(model, batch, head_map, sensitivity="gate").sensitivity
    assert found is not None
    for slot in slots_in(model, ABSENT):
        assert found[slot] == pytest.approx(expected[slot], rel=1e-5)
        assert expected[slot] > 1e-4


def with_proposals(kind: str, initializer: str) -> tuple[PlasticModel, HeadMap]:
    model = tiny_model(kind, attention="eager")
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    propose(model, head_map, registry.build("init", initializer), "key", Sources())
    return model, head_map


@pytest.mark.parametrize("kind", KINDS)
def test_output_sensitivity_is_the_l1_norm_of_the_mean_gradient_of_output_weights_that_are_zero(kind: str) -> None:
    model, head_map = with_proposals(kind, "zero_output")
    batch = some_batch(kind, 5)
    found = probed(model, batch, head_map, sensitivity="output").sensitivity
    assert found is not None
    model.set_gates(HeadMap.full(*model.shape))  # open: with zero output weights the logits are the same
    loss = torch.stack([label_loss(logits_of(model, one), one) for one in parts_of(batch, 1)]).mean()
    names = [row[0][0] for row in output_places(kind, model)]
    gradients = torch.autograd.grad(loss, [model.network.get_parameter(name) for name in names])
    for layer, row in enumerate(output_places(kind, model)):
        for head, (_, dim, indices) in enumerate(row):
            expected = gradients[layer].narrow(dim, indices.start, len(indices)).abs().sum()
            assert found[layer, head] == pytest.approx(float(expected), rel=1e-5), (layer, head)
            assert expected > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_each_initializer_asks_for_the_gradient_that_is_alive_under_it(kind: str) -> None:
    batch = some_batch(kind, 4)
    for initializer, alive, dead in (("zero_output", "output", "gate"), ("small_random", "gate", None)):
        assert registry.load("init", initializer).forms[0] == alive
        model, head_map = with_proposals(kind, initializer)
        found = probed(model, batch, head_map, sensitivity=alive).sensitivity
        assert found is not None and all(found[slot] > 0 for slot in slots_in(model, ABSENT))
        if dead:
            nothing = probed(model, batch, head_map, sensitivity=dead).sensitivity
            assert nothing is not None and [nothing[slot] for slot in slots_in(model, ABSENT)] == [0.0] * len(ABSENT)


# Ranks.


def probed_over_ranks(
    model: PlasticModel, shards: Sequence[Sequence[Batch]], head_map: HeadMap, **options: Any
) -> list[HeadStatistics]:
    """Run the probe once on every shard to see what it sends, then once more with the sums in reply."""
    model.set_gates(head_map)
    sent: list[list[torch.Tensor]] = []
    with np.errstate(invalid="ignore", divide="ignore"):  # a rank without windows, before its sums arrive
        for shard in shards:
            sent.append([])
            probe(model, shard, head_map, recorded(sent[-1]), **options)
    assert all(tensor.dtype == torch.float64 for messages in sent for tensor in messages)
    totals = [sum(tensors) for tensors in zip(*sent, strict=True)]
    results = []
    for shard in shards:
        results.append(probe(model, shard, head_map, replied(totals), **options))
    return results


@pytest.mark.parametrize("sensitivity", ["gate", "output"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_sharding_of_the_windows_gives_every_rank_the_same_statistics(kind: str, sensitivity: str) -> None:
    model, batch = tiny_model(kind, attention="eager"), some_batch(kind, 7)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    one = probed(model, batch, head_map, sensitivity=sensitivity)
    shards = [parts_of(rows_of(batch, [6, 1]), 1), [], parts_of(rows_of(batch, [2, 0, 3, 4, 5]), 4)]
    ranks = probed_over_ranks(model, shards, head_map, sensitivity=sensitivity)
    for found in ranks:
        for name in (*MEASURED, "sensitivity"):
            np.testing.assert_allclose(getattr(found, name), getattr(one, name), rtol=1e-6, err_msg=name)
            assert np.array_equal(getattr(found, name), getattr(ranks[0], name)), name


# Nothing is left changed.


class Surroundings:
    """What a probe must leave alone."""

    def __init__(self, model: PlasticModel) -> None:
        self.model = model
        self.weights = weights_of(model)
        self.gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
        self.trainable = {n: p.requires_grad for n, p in model.named_parameters()}
        self.generators = (
            torch.get_rng_state(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
            random.getstate(),
        )
        self.gates = [None if gate.values is None else gate.values.clone() for gate in model.gates]
        self.attention = model.network.config._attn_implementation
        self.training = [module.training for module in model.modules()]
        self.hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]

    def assert_same(self) -> None:
        now = Surroundings(self.model)
        for name in ("weights", "gradients"):
            before, after = getattr(self, name), getattr(now, name)
            assert all(before[n] is after[n] or torch.equal(before[n], after[n]) for n in before), name
        assert torch.equal(self.generators[0], now.generators[0])
        assert self.generators[1:] == now.generators[1:]
        assert str(self.gates) == str(now.gates)
        for name in ("trainable", "attention", "training", "hooks"):
            assert getattr(self, name) == getattr(now, name), name


def surrounded(kind: str) -> tuple[PlasticModel, HeadMap, Surroundings]:
    model = tiny_model(kind)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    model.set_gates(head_map)
    model.train()
    frozen, *others = model.parameters()
    frozen.requires_grad_(False)
    for parameter in others[::2]:
        parameter.grad = torch.ones_like(parameter)
    return model, head_map, Surroundings(model)


@pytest.mark.parametrize("sensitivity", [None, "gate", "output"])
@pytest.mark.parametrize("kind", KINDS)
def test_probing_leaves_everything_as_it_was(kind: str, sensitivity: Any) -> None:
    model, head_map, before = surrounded(kind)
    assert before.attention == "sdpa"
    first = probe(
        model,
        parts_of(some_batch(kind, 4), 2),
        head_map,
        lambda tensor: tensor,
        sensitivity=sensitivity,
    )
    before.assert_same()
    again = probe(
        model,
        parts_of(some_batch(kind, 4), 2),
        head_map,
        lambda tensor: tensor,
        sensitivity=sensitivity,
    )
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in MEASURED)


def test_a_probe_that_fails_leaves_everything_as_it_was() -> None:
    model, head_map, before = surrounded("gpt2")
    with pytest.raises(IndexError):
        probe(model, [causal(some_tokens()), causal(torch.full((1, 8), 10**6))], head_map, lambda tensor: tensor)
    before.assert_same()


def test_probing_ignores_dropout() -> None:
    model = tiny_model("gpt2", attention="eager")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    whole = HeadMap.full(*model.shape)
    quiet = probed(model, some_batch("gpt2"), whole)
    model.train()
    loud = probed(model, some_batch("gpt2"), whole)
    assert all(np.array_equal(getattr(quiet, name), getattr(loud, name)) for name in MEASURED)


def test_attention_that_cannot_be_watched_is_an_error_not_a_guess() -> None:
    model = tiny_model("gpt2")
    whole = HeadMap.full(*model.shape)
    model.sites[1] = replace(model.sites[1], attention=torch.nn.Identity())
    with pytest.raises(ModelError, match="layer 1 does not attend through transformers' attention interface"):
        probed(model, some_batch("gpt2"), whole)
