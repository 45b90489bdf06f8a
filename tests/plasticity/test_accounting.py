"""What present heads cost equals what counting on physically smaller networks finds, to all digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import KINDS, compacted, head_map_without, some_tokens, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from raysweep import registry
from raysweep.plasticity.accounting import active_parameters, flops_per_token
from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.model import PlasticModel

# Whole groups where queries share keys, so that a stock network of that shape exists.
WHOLE = {"llama-gqa": [(0, 3), (0, 4), (0, 5), *((1, head) for head in range(6))]}
UNEVEN = [(0, 1), (1, 0), (1, 2)]


def counted_flops(network: Any, batch: int, length: int) -> float:
    """Count with torch, eager attention, per token."""
    network.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(input_ids=some_tokens(batch, length), use_cache=False)
    return counter.get_total_flops() / (batch * length)


@pytest.mark.parametrize("length", [8, 31])
@pytest.mark.parametrize("kind", KINDS)
def test_flops_of_the_full_model_are_what_torch_counts(kind: str, length: int) -> None:
    model = tiny_model(kind)
    expected = counted_flops(model.network, 2, length)
    assert flops_per_token(model, HeadMap.full(*model.shape), length) == expected


@pytest.mark.parametrize(
    "size", [size for f in registry.available("models") for size in registry.load("models", f).sizes]
)
def test_flops_of_from_scratch_sizes_are_what_torch_counts(size: str) -> None:
    family = registry.build("models", size.partition("-")[0])
    config = family.config(size, vocab_size=1024, seq_len=16)
    network = AutoModelForCausalLM.from_config(config)
    model = PlasticModel(network, family.sites(network))
    whole = HeadMap.full(*model.shape)
    assert flops_per_token(model, whole, 16) == counted_flops(network, 1, 16)
    assert active_parameters(model, whole) == network.num_parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_costs_what_an_equal_smaller_network_costs(kind: str) -> None:
    model = tiny_model(kind)
    head_map = head_map_without(model, *WHOLE.get(kind, UNEVEN))
    smaller = compacted(kind, model, head_map)
    assert active_parameters(model, head_map) == sum(p.numel() for p in smaller.parameters())
    assert flops_per_token(model, head_map, 12) == counted_flops(smaller, 2, 12)
    whole = HeadMap.full(*model.shape)
    assert active_parameters(model, head_map) < active_parameters(model, whole)
    assert flops_per_token(model, head_map, 12) < flops_per_token(model, whole, 12)


def test_a_query_head_of_a_living_group_takes_only_its_query_and_output_along() -> None:
    model = tiny_model("llama-gqa")  # width 27, head width 4, three heads to a group, no biases
    whole = HeadMap.full(*model.shape)
    costs = [active_parameters(model, whole)]
    flops = [flops_per_token(model, whole, 10)]
    for slot in ((1, 3), (1, 5), (1, 4)):
        whole = whole.without([slot])
        costs.append(active_parameters(model, whole))
        flops.append(flops_per_token(model, whole, 10))
    own, shared = 2 * 27 * 4, 2 * 27 * 4
    assert [a - b for a, b in zip(costs, costs[1:], strict=False)] == [own, own, own + shared]
    attention = 4 * 10 * 4
    assert [a - b for a, b in zip(flops, flops[1:], strict=False)] == [
        2 * own + attention, 2 * own + attention, 2 * (own + shared) + attention
    ]  # fmt: skip


def test_biases_count_as_parameters_and_not_as_products() -> None:
    model = tiny_model("gpt2")  # width 15, head width 5
    whole = HeadMap.full(*model.shape)
    pruned = whole.without([(2, 1)])
    assert active_parameters(model, whole) - active_parameters(model, pruned) == 4 * 15 * 5 + 3 * 5
    assert flops_per_token(model, whole, 10) - flops_per_token(model, pruned, 10) == 2 * 4 * 15 * 5 + 4 * 10 * 5


def test_tied_weights_count_once_as_parameters_and_every_time_as_products() -> None:
    tied = tiny_model("gpt2")
    assert tied.network.lm_head.weight is tied.network.transformer.wte.weight
    assert active_parameters(tied, HeadMap.full(*tied.shape)) == sum(
        p.numel() for name, p in tied.network.state_dict().items() if name != "lm_head.weight"
    )
