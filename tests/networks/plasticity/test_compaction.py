"""Compaction: absent heads leave every tensor, and the network computes, trains and generates as the masked one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    DECODERS,
    KINDS,
    arguments_of,
    at,
    family_of,
    head_map_without,
    head_places,
    label_loss,
    slots_in,
    some_batch,
    some_tokens,
    tiny_model,
)  # fmt: skip
from transformers import DynamicCache, StaticCache

from raysweep.contracts import Batch, Mask
from raysweep.errors import ModelError
from raysweep.networks.plasticity.accounting import active_parameters
from raysweep.networks.plasticity.compaction import compact, compact_tensors, densify, key_value_index
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.plasticity.ragged import RAGGED
from raysweep.networks.plasticity.surgery import absent_slices

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
UNEVEN = {
    **dict.fromkeys(KINDS, ((0, 1), (2, 0), (2, 2))),
    "llama": ((0, 1), (0, 4), (1, 2)),
    "llama-gqa": ((0, 1), (1, 0), (1, 1), (1, 2), (1, 4), (2, 8)),
    "llama-mqa": ((0, 1), (1, 2), (1, 3)),
    "qwen3": ((0, 1), (2, 0), (2, 2), (2, 3), (2, 4)),
}


def random_map(model: PlasticModel, seed: int) -> HeadMap:
    """Remove each head with probability one half; one a layer stays."""
    generator = np.random.default_rng(seed)
    gone = generator.random(model.shape) < 0.5
    gone[range(model.shape[0]), generator.integers(model.shape[1], size=model.shape[0])] = False
    return head_map_without(model, *[(int(layer), int(head)) for layer, head in np.argwhere(gone)])


def pair(kind: str, head_map: HeadMap | None = None, dtype: torch.dtype = torch.float64) -> tuple[PlasticModel, Any]:
    """Return the masked model and the compacted network."""
    model = tiny_model(kind, dtype=dtype)
    head_map = head_map or head_map_without(model, *slots_in(model, UNEVEN[kind]))
    model.set_gates(head_map)
    return model, compact(model.network, family_of(kind), head_map)


@pytest.mark.parametrize(("kind", "seed", "dtype"), list(product(KINDS, range(6), TOLERANCE)))
@torch.no_grad()
def test_the_compacted_logits_are_the_masked_ones(kind: str, seed: int, dtype: torch.dtype) -> None:
    whole = tiny_model(kind, dtype=dtype)
    model, smaller = pair(kind, random_map(whole, seed), dtype)
    batch = batch_of(kind, dtype)
    logits = logits_of(model, batch)
    scale = max(1.0, float(logits.abs().max()))
    assert (logits_of_plain(smaller, batch) - logits).abs().max() <= TOLERANCE[dtype] * scale
    assert not torch.equal(logits, logits_of(whole, batch))


def logits_of_plain(network: Any, batch: Batch) -> torch.Tensor:
    return network(**arguments_of(network, batch)).logits


def batch_of(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
    """Return a batch for a kind; pixels in the precision of the network."""
    batch = some_batch(kind, seed=seed)
    return replace(batch, inputs=batch.inputs.to(dtype)) if batch.inputs.is_floating_point() else batch


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_padding_is_seen(kind: str, side: str) -> None:
    model, smaller = pair(kind)
    tokens, mask = some_tokens(), torch.ones(2, 12, dtype=torch.long)
    mask[0, slice(0, 4) if side == "left" else slice(8, 12)] = 0
    seen = mask.bool()
    difference = (smaller(tokens, attention_mask=mask).logits - model(tokens, mask))[seen]
    assert difference.abs().max() <= 1e-12
    if side == "left":  # causal layers do not look right anyway
        assert not torch.allclose(smaller(tokens).logits[seen], model(tokens, mask)[seen])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_removed_is_the_same_network_bit_for_bit(kind: str) -> None:
    model = tiny_model(kind)
    same = compact(model.network, family_of(kind), HeadMap.full(*model.shape))
    assert_equal_states(same, model.network)
    assert torch.equal(logits_of_plain(same, batch_of(kind)), logits_of(model, batch_of(kind)))
    assert same.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("kind", "seed"), list(product(KINDS, range(3))))
def test_the_smaller_network_has_exactly_the_active_parameters(kind: str, seed: int) -> None:
    model = tiny_model(kind)
    head_map = random_map(model, seed)
    smaller = compact(model.network, family_of(kind), head_map)
    gone = places_of(kind, model, ~head_map.present) - places_of(kind, model, head_map.present)  # some are shared
    left = sum(p.numel() for p in model.network.parameters()) - sum(at(model, place).numel() for place in gone)
    assert sum(p.numel() for p in smaller.parameters()) == active_parameters(model, head_map) == left


def places_of(kind: str, model: PlasticModel, heads: Mask) -> set[tuple[str, int, range]]:
    slots = [(int(layer), int(head)) for layer, head in np.argwhere(heads)]
    return {place for slot in slots for places in head_places(kind, model, *slot).values() for place in places}


@pytest.mark.parametrize(("kind", "seed"), list(product(KINDS, range(3))))
def test_densify_puts_present_heads_back_bit_for_bit_and_zeros_between(kind: str, seed: int) -> None:
    model = tiny_model(kind)
    head_map, family = random_map(model, seed), family_of(kind)
    whole = densify(compact(model.network, family, head_map), family, head_map)
    expected = PlasticModel(whole, family.sites(whole))
    for part in absent_slices(model.sites, head_map):
        model.network.get_parameter(part.parameter).data.narrow(part.dim, part.start, part.length).zero_()
    assert_equal_states(whole, model.network)
    for layer, head in np.argwhere(~head_map.present):
        for place in head_places(kind, model, layer, head)["output"]:
            assert not at(expected, place).any()
    model.set_gates(head_map)
    assert (logits_of_plain(whole, batch_of(kind)) - logits_of(model, batch_of(kind))).abs().max() <= 1e-12


def test_the_original_and_its_gates_are_left_alone() -> None:
    model, _ = pair("llama-gqa")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    state = torch.random.get_rng_state()
    compact(model.network, family_of("llama-gqa"), head_map_without(model, (0, 0)))
    assert_equal_tensors(before, model.network.state_dict())
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.network.config._attn_implementation == "sdpa" and model.gates[0].values is not None


@pytest.mark.parametrize("kind", KINDS)
def test_modules_know_their_new_shapes(kind: str) -> None:
    model, smaller = pair(kind)
    for site in family_of(kind).sites(smaller):
        for name in ("c_attn", "c_proj", "q_proj", "k_proj", "v_proj", "o_proj", "out_proj"):
            module: Any = getattr(site.attention, name, None)
            if hasattr(module, "nf"):
                assert (module.nx, module.nf) == tuple(module.weight.shape)
            elif module is not None:
                assert (module.out_features, module.in_features) == tuple(module.weight.shape)


# Grouped queries.


def index_of(kind: str, layer: int, *absent: int) -> list[int] | None:
    model = tiny_model(kind)
    return key_value_index(model.sites[layer], head_map_without(model, *[(layer, head) for head in absent]))


def test_only_uneven_groups_need_an_index() -> None:
    assert index_of("llama-gqa", 0) is None
    assert index_of("llama-gqa", 0, 0, 1, 2) is None  # a whole group
    assert index_of("llama-gqa", 1, 0, 4, 8) is None  # one of each
    assert index_of("llama-gqa", 1, 0) == [0, 0, 1, 1, 1, 2, 2, 2]
    assert index_of("llama-gqa", 1, 0, 1, 2, 4) == [0, 0, 1, 1, 1]
    assert index_of("llama", 1, 0, 3) is None and index_of("llama-mqa", 1, 0, 3) is None


def test_a_whole_group_takes_its_key_and_value_along() -> None:
    model = tiny_model("llama-gqa")
    smaller = compact(model.network, family_of("llama-gqa"), head_map_without(model, (1, 3), (1, 4), (1, 5)))
    attention = smaller.model.layers[1].self_attn
    assert attention.k_proj.weight.shape == (8, 27) and attention.num_key_value_groups == 3
    kept = torch.tensor([*range(4), *range(8, 12)])
    assert torch.equal(attention.v_proj.weight, model.network.model.layers[1].self_attn.v_proj.weight[kept])
    assert smaller.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("stock", ["sdpa", "eager"])
def test_uneven_groups_refuse_stock_attention(stock: str) -> None:
    _, smaller = pair("llama-gqa")
    assert smaller.config._attn_implementation == RAGGED
    smaller.set_attn_implementation(stock)
    with pytest.raises(ModelError, match=f"layer 0 .* attention '{stock}' would pair them with wrong keys"):
        smaller(some_tokens())


def test_even_with_the_check_gone_stock_attention_cannot_pair_wrongly() -> None:
    _, smaller = pair("llama-gqa", head_map_without(tiny_model("llama-gqa"), (0, 0), (0, 1), (0, 3)))  # 6 over 3
    smaller.set_attn_implementation("sdpa")
    for layer in smaller.model.layers:
        layer.self_attn._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError):
        smaller(some_tokens())


def test_a_layer_without_heads_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(ModelError, match="layer 1 has no head left"):
        compact(model.network, family_of("gpt2"), head_map_without(model, (1, 0), (1, 1), (1, 2)))


def test_a_map_of_another_shape_is_refused() -> None:
    with pytest.raises(ModelError, match=r"shape \(3, 4\), but the network has \(3, 3\)"):
        compact(tiny_model("gpt2").network, family_of("gpt2"), HeadMap.full(3, 4))


# Training.


@pytest.mark.parametrize("kind", KINDS)
def test_masked_training_is_compacted_training(kind: str) -> None:
    model = tiny_model(kind)
    head_map, family = head_map_without(model, *slots_in(model, UNEVEN[kind])), family_of(kind)
    masked = SliceAdamW(dict(model.network.named_parameters()), weight_decay=0.1)
    train_step(kind, model, masked)  # moments to carry along
    model.set_gates(head_map)
    masked.clear(absent_slices(model.sites, head_map))
    smaller = compact(model.network, family, head_map)
    plain = plain_adamw(smaller, compact_tensors(masked.state_tensors(), family, model.network, head_map))
    for step in range(6):
        ours = train_step(kind, model, masked, seed=step)
        theirs = train_plainly(kind, smaller, plain, seed=step)
        assert abs(ours - theirs) <= 1e-10
    for name, tensor in compact_tensors(model.network.state_dict(), family, model.network, head_map).items():
        assert (tensor - smaller.state_dict()[name]).abs().max() <= 1e-10


def train_step(kind: str, model: PlasticModel, optimizer: SliceAdamW, seed: int = 0) -> float:
    batch = batch_of(kind, seed=seed)
    loss = label_loss(logits_of(model, batch), batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step(1e-2)
    optimizer.zero_grad()
    return loss.item()


def train_plainly(kind: str, network: Any, optimizer: torch.optim.AdamW, seed: int) -> float:
    batch = batch_of(kind, seed=seed)
    loss = label_loss(logits_of_plain(network, batch), batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def plain_adamw(network: Any, state: dict[str, torch.Tensor]) -> torch.optim.AdamW:
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for parameter in network.parameters():
        groups[parameter.dim() >= 2].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 0.1}, {"params": groups[False], "weight_decay": 0.0}], lr=1e-2
    )
    for name, parameter in network.named_parameters():
        moments = {key.partition("/")[2]: tensor for key, tensor in state.items() if key.partition("/")[0] == name}
        assert moments["exp_avg"].shape == parameter.shape
        optimizer.state[parameter] = moments
    return optimizer


# Generation.


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # `cache`, its new name, came in a later 5.x
@pytest.mark.parametrize("kind", DECODERS)
def test_generation_is_the_same_with_any_cache_and_without(kind: str) -> None:
    model, smaller = pair(kind)
    prompt = some_tokens(2, 6)
    plain = generated(smaller, prompt, use_cache=False)
    static = StaticCache(config=smaller.config, max_cache_len=20)
    assert torch.equal(plain, generated(model.network, prompt, use_cache=False))
    assert torch.equal(plain, generated(smaller, prompt, past_key_values=DynamicCache()))
    assert torch.equal(plain, generated(smaller, prompt, past_key_values=static))


@pytest.mark.parametrize("kind", DECODERS)
def test_a_left_padded_batch_generates_what_each_prompt_does_alone(kind: str) -> None:
    _, smaller = pair(kind)
    prompts, mask = some_tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    both = generated(smaller, prompts, attention_mask=mask)
    assert torch.equal(both[0, 8:], generated(smaller, prompts[:1, 3:])[0, 5:])
    assert torch.equal(both[1], generated(smaller, prompts[1:])[0])


def generated(network: Any, prompt: torch.Tensor, **options: Any) -> torch.Tensor:
    options.setdefault("attention_mask", torch.ones_like(prompt))
    return network.generate(prompt, do_sample=False, min_new_tokens=8, max_new_tokens=8, pad_token_id=0, **options)


def assert_equal_states(first: Any, second: Any) -> None:
    assert_equal_tensors(first.state_dict(), second.state_dict())


def assert_equal_tensors(first: Any, second: Any) -> None:
    assert set(first) == set(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
