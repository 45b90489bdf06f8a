"""What present heads cost equals what counting on physically smaller networks finds, to all digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import IMAGES, KINDS, arguments_of, compacted, head_map_without, slots_in, some_batch, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from raysweep.contracts import Batch, Facts
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.accounting import active_parameters, flops_per_token, positions
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.trial.data.examples import build_task

# Whole groups where queries share keys, so that a stock network of that shape exists.
WHOLE = {
    "llama-gqa": [(0, 3), (0, 4), (0, 5), *((1, head) for head in range(6))],
    **dict.fromkeys(("mistral", "qwen3"), [(0, 3), (0, 4), (0, 5), (1, 0), (1, 1), (1, 2)]),
}
UNEVEN = [(0, 1), (1, 0), (1, 2)]


def counted_flops(network: Any, batch: Batch, length: int) -> float:
    """Count with torch, eager attention, per token."""
    network.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**arguments_of(network, batch))
    return counter.get_total_flops() / (len(batch.labels) * length)


@pytest.mark.parametrize("length", [8, 31])
@pytest.mark.parametrize("kind", KINDS)
def test_flops_of_the_full_model_are_what_torch_counts(kind: str, length: int) -> None:
    model = tiny_model(kind)
    tokens = positions(model, length)
    assert tokens == (7 if kind in IMAGES else length)  # 3 x 2 patches and the class
    expected = counted_flops(model.network, some_batch(kind, 2, length), tokens)
    assert flops_per_token(model, HeadMap.full(*model.shape), tokens) == expected


@pytest.mark.parametrize("size", scratch_sizes())
def test_flops_of_from_scratch_sizes_are_what_torch_counts(size: str) -> None:
    """On 16 tokens, or on the 8 x 8 images of digits."""
    facts = Facts(vocab_size=1024, mask_token=2, pad_token=1, num_classes=10, image_shape=(1, 8, 8), brightest=16)
    sees = scratch_sizes()[size] in IMAGES
    spec = ModelSpec(name=size)
    network, family = build_network(spec, facts if sees else Facts(vocab_size=1024), seq_len=16, seed=0)
    model = PlasticModel(network, family.sites(network))
    whole = HeadMap.full(*model.shape)
    examples = np.arange(65 if sees else 16)[None] % 10
    tokens = positions(model, 16)
    assert tokens == (17 if sees else 16)
    counted = counted_flops(network, build_task(spec, facts).batch(examples, [0]), tokens)
    assert flops_per_token(model, whole, tokens) == counted
    assert active_parameters(model, whole) == network.num_parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_costs_what_an_equal_smaller_network_costs(kind: str) -> None:
    model = tiny_model(kind)
    head_map = head_map_without(model, *slots_in(model, WHOLE.get(kind, UNEVEN)))
    smaller = compacted(kind, model, head_map)
    assert active_parameters(model, head_map) == sum(p.numel() for p in smaller.parameters())
    tokens = positions(model, 12)
    assert flops_per_token(model, head_map, tokens) == counted_flops(smaller, some_batch(kind), tokens)
    whole = HeadMap.full(*model.shape)
    assert active_parameters(model, head_map) < active_parameters(model, whole)
    assert flops_per_token(model, head_map, tokens) < flops_per_token(model, whole, tokens)


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
