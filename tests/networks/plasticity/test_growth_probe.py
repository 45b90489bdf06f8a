"""GradMax's M is the gradient it claims to be, summed over all windows of all ranks before it is decomposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    recorded,
    some_tokens,
    tiny_model,
    weights_of,
)

from raysweep.contracts import HeadStatistics
from raysweep.job import registry
from raysweep.networks.plasticity.growth_probe import (
    Directions,
    gradmax_scores,
    uniform_attention,
    value_directions,
)  # fmt: skip
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel

ABSENT = ((0, 0), (1, 1), (1, 2))


def itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def directions_of(
    model: PlasticModel, parts: list[torch.Tensor], reduce: Callable[[torch.Tensor], torch.Tensor] = itself
) -> list[Directions]:
    batches = [causal(tokens) for tokens in parts]
    return value_directions(model, batches, head_map_without(model, *ABSENT), reduce, causal=True)


def matrix_of(found: Directions) -> torch.Tensor:
    """Return M^T M, which singular values and right-singular vectors determine."""
    return found.vectors.T @ (found.gains[:, None] * found.vectors)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_directions_are_those_of_the_gradient_at_the_output_times_the_mean_of_what_came_before(kind: str) -> None:
    """By the definition, position by position, with gradients and inputs caught by hooks of our own."""
    model, tokens = tiny_model(kind), some_tokens(5, 7)
    model.set_gates(head_map_without(model, *ABSENT))
    caught: dict[tuple[int, str], Any] = {}
    for site in model.sites:
        layer = site.layer
        site.attention.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: caught.update(
                {(layer, "x"): (args[0] if args else kwargs["hidden_states"]).detach()}
            ), with_kwargs=True,
        )  # fmt: skip
        site.projection.register_forward_hook(
            lambda _, inputs, output, layer=layer: (output.retain_grad(), caught.update({(layer, "y"): output}))[1]
        )
    sums = [torch.zeros(()) for _ in model.sites]
    for window in tokens:
        mean_loss(model(window[None]), window[None]).backward()
        for layer in range(3):
            x, delta = caught[layer, "x"][0], caught[layer, "y"].grad[0]
            for t in range(7):
                sums[layer] = sums[layer] + torch.outer(delta[t], x[: t + 1].mean(0))
    for layer, found in enumerate(directions_of(model, [tokens[:3], tokens[3:]])):
        expected = sums[layer] / 5
        torch.testing.assert_close(matrix_of(found), expected.T @ expected, rtol=1e-7, atol=1e-14)
        assert bool((found.gains[:-1] >= found.gains[1:]).all()) and found.gains[0] > 1e-8


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
def test_ranks_add_up_the_matrix_before_it_is_decomposed(kind: str) -> None:
    model, tokens = tiny_model(kind), some_tokens(6)
    whole = directions_of(model, [tokens])
    sent: list[list[torch.Tensor]] = [[], []]
    for messages, part in zip(sent, (tokens[:5], tokens[5:]), strict=True):
        directions_of(model, [part], recorded(messages))
    assert all(tensor.dtype == torch.float64 for tensor in (*sent[0], *sent[1]))
    totals = iter([first + second for first, second in zip(*sent, strict=True)])
    for found, expected in zip(directions_of(model, [], lambda _: next(totals)), whole, strict=True):
        torch.testing.assert_close(matrix_of(found), matrix_of(expected), rtol=1e-9, atol=1e-15)


def test_uniform_attention_is_the_mean_of_the_positions_that_can_be_seen() -> None:
    inputs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    seen = uniform_attention(inputs, mask, causal=True)
    torch.testing.assert_close(seen[0, 2], inputs[0, :3].mean(0))
    torch.testing.assert_close(seen[1, 2], inputs[1, 1:3].mean(0))
    assert not seen[1, 0].any()
    everywhere = uniform_attention(inputs, mask, causal=False)
    torch.testing.assert_close(everywhere[0], inputs[0, :3].mean(0).expand(4, 3))
    torch.testing.assert_close(uniform_attention(inputs, None, causal=False)[1, 0], inputs[1].mean(0))


def test_padding_is_left_out_wherever_it_stands() -> None:
    model, tokens = tiny_model("gpt2"), some_tokens(3, 6)
    batch = causal(tokens)
    padded = replace(
        batch,
        inputs=torch.cat([batch.inputs, torch.full((3, 2), 7)], 1),
        labels=torch.cat([batch.labels, torch.full((3, 2), -100)], 1),
        attention_mask=torch.cat([torch.ones(3, 6), torch.zeros(3, 2)], 1).long(),
    )
    head_map = head_map_without(model, *ABSENT)
    plain, more = (value_directions(model, [b], head_map, itself, causal=True) for b in (batch, padded))
    for found, expected in zip(more, plain, strict=True):
        torch.testing.assert_close(matrix_of(found), matrix_of(expected), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_directions_leaves_everything_as_it_was(training: bool) -> None:
    model = tiny_model("llama-gqa")
    model.train(training)
    model.network.get_parameter("model.norm.weight").requires_grad_(False)
    gates, weights, state = [gate.values for gate in model.gates], weights_of(model), torch.get_rng_state()
    directions_of(model, [some_tokens(3)])
    assert all(torch.equal(now, weights[name]) for name, now in weights_of(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [n for n, p in model.network.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    assert [gate.values for gate in model.gates] == gates and model.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(site.attention._forward_pre_hooks for site in model.sites)


# Scores.


def test_the_heads_of_one_layer_compete_with_block_after_block() -> None:
    model = tiny_model("gpt2")  # 3 heads of 5
    head_map = HeadMap.full(3, 3).without([(0, 0), (0, 2), (1, 1), (2, 0), (2, 1), (2, 2)])
    gains = [torch.arange(15, 0, -1.0).double() * factor for factor in (1.0, 2.0, 0.1)]
    directions = [Directions(vectors=torch.eye(15).double(), gains=g) for g in gains]
    scores = gradmax_scores(model, head_map, directions)
    expected = [[65.0, 0.0, 40.0], [0.0, 130.0, 0.0], [6.5, 4.0, 1.5]]
    np.testing.assert_allclose(scores, expected)
    statistics = HeadStatistics(present=head_map.present, sensitivity=scores, **dict.fromkeys(
        ("taylor", "fisher", "signed_taylor", "entropy", "sink_mass", "sink_free_entropy", "output_norm", "magnitude",
         "magnitude_ov", "magnitude_qk"), np.zeros((3, 3))))  # fmt: skip
    chosen = registry.build("grow", "gradient_sensitivity")(statistics, 4, np.random.default_rng(0))
    assert chosen == [(1, 1), (0, 0), (0, 2), (2, 0)]


def test_no_direction_is_left_for_heads_beyond_the_width() -> None:
    model = tiny_model("llama")  # 5 heads of 6 in a width of 20
    head_map = HeadMap.full(3, 5).without([(1, head) for head in range(4)])
    found = Directions(vectors=torch.eye(20).double(), gains=torch.ones(20).double())
    np.testing.assert_allclose(gradmax_scores(model, head_map, [found] * 3)[1], [6, 6, 6, 0, 0])


def test_heads_of_a_group_share_its_block_and_those_of_a_living_group_get_what_its_values_see() -> None:
    model = tiny_model("llama-gqa")  # three groups of three heads of 4 in a width of 27
    head_map = HeadMap.full(3, 9).without([(0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 0)])
    place = head_places("llama-gqa", model, 1, 0)["value"][0]
    at(model, place).zero_()
    at(model, place)[:, :4] = 3 * torch.eye(4).double()  # looks at the first four directions only
    found = Directions(vectors=torch.eye(27).double(), gains=torch.arange(27, 0, -1.0).double())
    scores = gradmax_scores(model, head_map, [found] * 3)
    np.testing.assert_allclose(scores[0], [0, 0, 0, 102, 102, 102, 86, 86, 86])
    np.testing.assert_allclose(scores[1], [102, 0, 0, 0, 0, 0, 0, 0, 0])
