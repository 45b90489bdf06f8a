"""When tokens leave: every rule on states and logits planted by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.recurrent import RULES, batch_of, network_of, rule_of, tokens_of

from raysweep.contracts import Batch, ExitLook
from raysweep.job import registry
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.networks.pnn.dynamic import infer
from raysweep.networks.pnn.supervision import exit_probabilities
from raysweep.strategies.exits.random import leaving_probability


def look(step: int = 1, tokens: int = 2, steps: int = 4, min_steps: int = 1, **seen: Any) -> ExitLook:
    zeros = torch.zeros(tokens, 3)
    about = {"before": zeros, "after": zeros, "memory": torch.zeros(tokens, dtype=torch.float64)} | seen
    return ExitLook(step=step, steps=steps, min_steps=min_steps, **about)


def test_every_rule_is_tried_here() -> None:
    assert sorted(RULES) == registry.available("exits")


@pytest.mark.parametrize("name", registry.available("exits"))
def test_a_rule_answers_for_each_token_and_remembers_a_number_of_each(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = ("before", "after", "logits", "logits_before")
    drawn: dict[str, Any] = {kind: torch.randn(5, 7, generator=generator) for kind in kinds}
    leave, memory = rule_of(name)(look(2, 5, leave=drawn["logits"][:, 0], chance=torch.rand(5), **drawn))
    assert leave.shape == memory.shape == (5,)
    assert leave.dtype == torch.bool and memory.dtype == torch.float64
    assert registry.load("exits", name).reads in ("states", "predictions", "exit_head", "chance")


def test_delta_norm_is_relative_to_the_state() -> None:
    before = torch.tensor([[3.0, 4.0, 0.0], [30.0, 40.0, 0.0]])
    after = before + torch.tensor([0.0, 0.0, 1.0])  # a fifth of the first state, a fiftieth of the second
    leave, _ = rule_of("delta_norm", threshold=0.1)(look(before=before, after=after))
    assert leave.tolist() == [False, True]


def test_patience_counts_repeats_in_a_row() -> None:
    rule, memory, before = rule_of("patience", patience=2), torch.zeros(2, dtype=torch.float64), None
    left = []
    for step, largest in enumerate([(0, 0), (0, 0), (0, 1), (0, 1), (0, 1)], 1):
        logits = torch.nn.functional.one_hot(torch.tensor(largest), 3).float()
        leave, memory = rule(look(step, logits=logits, logits_before=before, memory=memory))
        left.append(leave.tolist())
        before = logits
    assert left == [[False, False], [False, False], [True, False], [True, False], [True, True]]


def test_kl_is_of_what_is_predicted_now_from_what_was() -> None:
    """KL([.5 .5] || [.9 .1]) is 0.5108, the other way round 0.3681."""
    now, before = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert rule_of("kl", divergence=0.52)(look(2, 1, logits=now, logits_before=before))[0]
    assert not rule_of("kl", divergence=0.5)(look(2, 1, logits=now, logits_before=before))[0]
    assert not rule_of("kl", divergence=9.0)(look(1, 1, logits=now))[0]  # nothing to compare with


def test_max_probability_is_of_the_likeliest_class() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]).log()
    assert rule_of("max_probability", probability=0.6)(look(logits=logits))[0].tolist() == [True, False]


def test_learned_leaves_where_the_exit_probabilities_add_up_to_the_quantile() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left_by = exit_probabilities(logits).cumsum(0)
    rule, memory = rule_of("learned", quantile=0.6), torch.zeros(40, dtype=torch.float64)
    for step in range(4):  # after the last one everyone leaves
        leave, memory = rule(look(step + 1, 40, steps=5, leave=logits[step], memory=memory))
        assert torch.equal(leave, left_by[step] > 0.6)


@pytest.mark.parametrize(("mean", "steps", "min_steps"), [(2.5, 4, 1), (1.2, 6, 1), (5.5, 8, 3), (4.0, 4, 1)])
def test_chance_has_the_mean_that_was_asked_for_and_no_memory(mean: float, steps: int, min_steps: int) -> None:
    chance = torch.from_numpy(np.random.default_rng(0).random(200_000))
    rule = rule_of("random", mean_steps=mean)
    taken = torch.full_like(chance, steps)
    shares = []
    for step in reversed(range(min_steps, steps)):
        leave, _ = rule(look(step, len(chance), steps=steps, min_steps=min_steps, chance=chance))
        taken[leave] = step
    assert float(taken.mean()) == pytest.approx(mean, abs=0.01)
    for step in range(min_steps, steps):
        shares.append(float((taken == step).sum() / (taken >= step).sum()))
    assert max(shares, default=0) - min(shares, default=0) < 0.01  # equally likely after every step


def test_the_leaving_probability_solves_for_the_mean() -> None:
    p = leaving_probability(2.5, 4)
    assert sum(step * p * (1 - p) ** (step - 1) for step in (1, 2, 3)) + 4 * (1 - p) ** 3 == pytest.approx(2.5)
    assert (leaving_probability(1.0, 4), leaving_probability(4.0, 4)) == (1.0, 0.0)
    for mean in (4 - 1e-6, 4 - 1e-12, 1 + 1e-6, 1 + 1e-12):  # as measured, next to either end
        p = leaving_probability(mean, 4)
        assert 0 <= p <= 1 and (p == 0 or sum((1 - p) ** step for step in range(4)) == pytest.approx(mean, rel=1e-6))


def test_chance_is_the_same_for_an_example_wherever_it_stands() -> None:
    network, inputs = network_of(), tokens_of(3)
    rule = rule_of("random")
    forwards = infer(network, batch_of(inputs), rule, steps=5, seeds=[4, 5, 6])
    backwards = infer(network, batch_of(inputs.flip(0)), rule, steps=5, seeds=[6, 5, 4])
    assert torch.equal(forwards.steps, backwards.steps.flip(0))
    assert not torch.equal(forwards.steps[0], forwards.steps[1])


def test_ponder_training_lowers_its_loss_and_its_exits_learn_where_to_leave() -> None:
    """A token is told by its embedding alone, so a trained head leaves at once; an untrained one does not know."""
    network = network_of(ponder_prior=0.3, ponder_weight=0.01).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    inputs = tokens_of(8)
    every = Batch(inputs=inputs, labels=inputs, labelled=torch.arange(inputs.numel()))
    losses = []
    for _ in range(60):
        loss = network.training_losses(inputs, inputs.flatten(), positions=every.labelled).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert network.exit_head.weight.grad.abs().sum() > 0
    network.eval()
    with torch.no_grad():
        states = network.pnn.states(inputs)[1:]
        leave = torch.stack([network.exit_head(state.flatten(0, 1)).squeeze(-1) for state in states])
    probabilities = exit_probabilities(leave)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(inputs.numel(), dtype=torch.float64))
    assert (probabilities >= 0).all()
    early = infer(network, every, rule_of("learned", quantile=0.5), steps=3)
    late = infer(network, every, rule_of("learned", quantile=0.95), steps=3)
    assert early.steps.sum() < late.steps.sum() <= 3 * inputs.numel()
    expected = (probabilities.cumsum(0) <= 0.5).sum(0).clamp_max(2) + 1
    assert (early.steps.flatten() == expected).float().mean() > 0.9  # the others see other tokens leave
    assert math.isfinite(float(early.logits.sum())) and (every.labels != NO_LABEL).all()
