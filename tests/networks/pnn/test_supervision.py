"""What a step counts: weights that sum to 1, exits that are probabilities, and losses that are those of full logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import VOCABULARY, some_tokens
from torch.nn import functional

from raysweep.contracts import Batch
from raysweep.errors import DataError
from raysweep.networks.models.pnn import Family
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import NO_LABEL, losses_of, training_losses
from raysweep.networks.pnn.config import PnnConfig
from raysweep.networks.pnn.network import PnnForMaskedLM
from raysweep.networks.pnn.supervision import divergence, exit_probabilities, geometric_prior, step_weights
from raysweep.trial.measures.evaluation import evaluate
from raysweep.trial.runtime import Runtime

FORMS: list[Any] = ["linear", "uniform", "last", "geometric"]
CPU = Runtime(device=torch.device("cpu"))


def model_of(**options: Any) -> PlasticModel:
    """Return a small network whose loss is far from flat: its weights are larger than those it begins with."""
    torch.manual_seed(3)
    shape = {"hidden_size": 20, "num_attention_heads": 5, "intermediate_size": 14, "num_steps": 3}
    network = PnnForMaskedLM(PnnConfig(vocab_size=VOCABULARY, **shape | options)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return PlasticModel(network, Family().sites(network))


def masked_batch(count: int = 5) -> Batch:
    """Return four windows of twelve tokens; the second has no label, the others unequally many."""
    tokens = some_tokens(4, 12, seed=1)
    places = torch.tensor([1, 7, 24, 30, 47])[:count]
    labels = torch.full((48,), NO_LABEL).index_copy(0, places, torch.tensor([5, 0, 17, 9, 5])[:count])
    return Batch(inputs=tokens, labels=labels.view(4, 12), labelled=places)


def gradients(model: PlasticModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


# Weights.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 12])
def test_the_weights_of_all_steps_sum_to_one_and_never_fall(form: Any, steps: int) -> None:
    weights = step_weights(form, steps)
    assert len(weights) == steps and sum(weights) == pytest.approx(1, abs=1e-12)
    assert all(a <= b for a, b in zip(weights, weights[1:], strict=False))


def test_the_forms_are_what_they_are_called() -> None:
    assert step_weights("linear", 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])  # as published
    assert step_weights("linear", 2) == pytest.approx([1 / 3, 2 / 3])
    assert step_weights("uniform", 5) == [0.2] * 5
    assert step_weights("last", 3) == [0, 0, 1]
    assert step_weights("geometric", 3) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert {tuple(step_weights(form, 1)) for form in FORMS} == {(1.0,)}


@pytest.mark.parametrize("form", FORMS)
def test_what_training_lowers_is_the_weighted_sum_over_steps_and_the_embedding_does_not_count(form: Any) -> None:
    model, batch = model_of(step_weights=form), masked_batch()
    network: Any = model.network
    states = network.pnn.states(batch.inputs)[1:]
    labels = batch.labels.flatten()
    each = [functional.cross_entropy(network.predict(s).flatten(0, 1), labels, reduction="none") for s in states]
    expected = sum(w * loss for w, loss in zip(step_weights(form, 3), each, strict=True))
    torch.testing.assert_close(training_losses(model, batch).flatten(), expected)


def test_a_drawn_depth_is_supervised_at_each_of_its_steps() -> None:
    model, batch = model_of(random_depth=True), masked_batch()
    network: Any = model.network
    depths = set()
    for seed in range(40):
        model.begin_step(seed)
        states = network.pnn.states(batch.inputs, steps=network._depth)[1:]
        depths.add(len(states))
        labels = batch.labels.flatten()
        expected = sum(
            2 * t / (len(states) * (len(states) + 1))
            * functional.cross_entropy(network.predict(state).flatten(0, 1), labels, reduction="none")
            for t, state in enumerate(states, 1)
        )  # fmt: skip
        torch.testing.assert_close(training_losses(model, batch).flatten(), expected)
    assert depths == {1, 2, 3, 4, 5}  # evenly from 1 to 2 T - 1


# Logits at labels alone.


@pytest.mark.parametrize("form", [*FORMS, "ponder"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_at_labels_alone_give_the_losses_and_gradients_of_full_logits(form: Any, tied: bool) -> None:
    model = model_of(step_weights=form, tie_word_embeddings=tied, final_norm=True)
    batch = masked_batch()
    everywhere = Batch(inputs=batch.inputs, labels=batch.labels)
    assert len(set((batch.labels != NO_LABEL).sum(1).tolist())) > 2
    labels = batch.labels != NO_LABEL
    few, full = training_losses(model, batch), training_losses(model, everywhere)
    torch.testing.assert_close(few[labels], full[labels], rtol=0, atol=1e-10)
    torch.testing.assert_close(losses_of(model, batch), losses_of(model, everywhere), rtol=0, atol=1e-10)
    ours, theirs = gradients(model, few.sum()), gradients(model, full[labels].sum())
    assert ours.keys() == theirs.keys() and len(ours) >= 20
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-10, msg=name)
        assert gradient.abs().max() > 1e-6 or name.endswith("k_proj.bias"), name  # softmax ignores a key's bias


def test_no_more_logits_are_computed_than_there_are_labels() -> None:
    model, batch = model_of(), masked_batch()
    rows: list[int] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].flatten(0, -2).shape[0]))
    training_losses(model, batch)
    assert rows == [5] * 3
    losses_of(model, batch)
    assert rows == [5] * 4


# Nothing to predict.


@pytest.mark.parametrize("form", [*FORMS, "ponder"])
def test_a_batch_without_a_label_has_a_loss_of_zero_and_no_gradient(form: Any) -> None:
    model, batch = model_of(step_weights=form), masked_batch(0)
    losses = training_losses(model, batch)
    assert losses.shape == (4, 12) and not losses.any()
    found = gradients(model, losses.sum())
    assert found.keys() == dict(model.network.named_parameters()).keys()  # all ranks have all of them
    assert all(not gradient.any() for gradient in found.values())  # and none is NaN


def test_evaluation_counts_a_batch_without_a_label_for_nothing_and_refuses_if_all_are_so() -> None:
    model, batch = model_of(), masked_batch()
    assert evaluate(model, [masked_batch(0), batch], CPU, "fp32") == evaluate(model, [batch], CPU, "fp32")
    with pytest.raises(DataError, match="nothing to predict"):
        evaluate(model, [masked_batch(0)], CPU, "fp32")


# Exits.


def test_exit_probabilities_are_those_of_leaving_after_having_stayed() -> None:
    chance = np.array([[0.2, 0.9], [0.5, 0.25], [0.3, 0.6]])  # (steps, tokens); the last step always leaves
    leave = torch.from_numpy(np.log(chance / (1 - chance)))
    expected = np.array([[0.2, 0.9], [0.8 * 0.5, 0.1 * 0.25], [0.8 * 0.5, 0.1 * 0.75]])
    np.testing.assert_allclose(exit_probabilities(leave).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(exit_probabilities(leave[:1]).numpy(), [[1.0, 1.0]])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_divergence_is_zero_at_the_prior_and_positive_elsewhere(steps: int) -> None:
    prior = torch.tensor(geometric_prior(0.3, steps), dtype=torch.float64)
    assert float(prior.sum()) == pytest.approx(1)
    assert prior[:-1].tolist() == pytest.approx([0.3 * 0.7**step for step in range(steps - 1)])
    uniform = torch.full((steps,), 1 / steps, dtype=torch.float64)
    zero, other = divergence(torch.stack([prior, uniform], 1), 0.3)
    assert float(zero) == pytest.approx(0, abs=1e-12)
    by_hand = sum(q * math.log(q / p) for q, p in zip(uniform.tolist(), prior.tolist(), strict=True))
    assert float(other) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_an_exit_that_is_certain_has_finite_gradients(logit: float) -> None:
    leave = torch.full((4, 3), logit, requires_grad=True)
    probabilities = exit_probabilities(leave)
    (divergence(probabilities, 0.3).sum() + (probabilities * torch.arange(4)[:, None]).sum()).backward()
    assert leave.grad is not None and torch.isfinite(leave.grad).all()
