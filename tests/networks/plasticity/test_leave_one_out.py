"""True contributions: explicit removals, paired over windows, and nothing left changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import (
    KINDS,
    at,
    causal,
    head_map_without,
    head_places,
    label_loss,
    parts_of,
    slots_in,
    some_batch,
    some_tokens,
    tiny_model,
    weights_of,
)

from raysweep.contracts import Batch
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.leave_one_out import bootstrap_interval, contributions
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of

ABSENT = ((0, 1), (2, 0))


def losses(model: PlasticModel, batch: Batch) -> list[float]:
    """Return each example's mean loss."""
    return [float(label_loss(logits_of(model, example), example)) for example in parts_of(batch, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_contribution_is_the_loss_with_zeroed_output_weights_minus_the_loss(kind: str) -> None:
    model, batch = tiny_model(kind), some_batch(kind, 4)
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    found = contributions(model, parts_of(batch, 3), head_map)
    assert found.shape == (4, *model.shape)
    model.set_gates(head_map)
    with torch.no_grad():
        before = losses(model, batch)
        for layer, head in np.ndindex(*model.shape):
            (place,) = head_places(kind, model, layer, head)["output"]
            held = at(model, place).clone()
            at(model, place).zero_()
            after = losses(model, batch)
            at(model, place).copy_(held)
            np.testing.assert_allclose(found[:, layer, head], np.subtract(after, before), atol=1e-6)
    assert all((found[:, layer, head] == 0).all() for layer, head in slots_in(model, ABSENT))
    assert (np.abs(found).mean(0)[head_map.present] > 1e-4).all()


def test_a_head_that_writes_nothing_contributes_nothing() -> None:
    model = tiny_model("gpt2")
    at(model, head_places("gpt2", model, 1, 1)["output"][0]).zero_()
    found = contributions(model, [causal(some_tokens(3))], HeadMap.full(*model.shape))
    assert (found[:, 1, 1] == 0).all()


def test_measuring_contributions_leaves_everything_as_it_was() -> None:
    model = tiny_model("gpt2")
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    head_map = head_map_without(model, *slots_in(model, ABSENT))
    model.set_gates(head_map)
    gates, weights, state = str([gate.values for gate in model.gates]), weights_of(model), torch.get_rng_state()
    model.train()
    first, second = (contributions(model, [causal(some_tokens())], head_map) for _ in range(2))
    assert np.array_equal(first, second)
    assert model.training and all(part.training for part in model.modules())
    assert str([gate.values for gate in model.gates]) == gates and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[name], value) for name, value in weights_of(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_batch_gives_no_window() -> None:
    model = tiny_model("gpt2")
    assert contributions(model, [], HeadMap.full(*model.shape)).shape == (0, 3, 3)


def test_the_interval_covers_the_mean_and_narrows_with_windows() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, (400, 2, 3))
    low, high = bootstrap_interval(values)
    np.testing.assert_allclose(high - low, 2 * 1.96 * 2.0 / 20, rtol=0.15)
    assert (low < values.mean(0)).all() and (values.mean(0) < high).all()
    few_low, few_high = bootstrap_interval(values[:25])
    assert (few_high - few_low > 2 * (high - low)).all()
    alone = bootstrap_interval(values[:1])
    assert np.allclose(alone[0], values[0]) and np.allclose(alone[1], values[0])


def test_the_bootstrap_is_paired() -> None:
    """Heads that differ by a constant on every window differ by it in every resample."""
    base = np.random.default_rng(0).normal(0.0, 5.0, (10, 1, 1))
    low, high = bootstrap_interval(np.concatenate([base, base + 0.01], axis=2))
    np.testing.assert_allclose(low[0, 1] - low[0, 0], 0.01)
    np.testing.assert_allclose(high[0, 1] - high[0, 0], 0.01)
