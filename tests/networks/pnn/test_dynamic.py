"""Tokens that leave cost nothing more, change nothing else, and are what they were when they left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.recurrent import LENGTH, RULES, VARIANTS, batch_of, network_of, rule_of, tokens_of
from torch.utils.flop_counter import FlopCounterMode

from raysweep.contracts import Batch, Exit, ExitLook
from raysweep.errors import ModelError
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.networks.pnn.config import PnnVisionConfig
from raysweep.networks.pnn.dynamic import Inferred, infer
from raysweep.networks.pnn.flops import counted
from raysweep.networks.pnn.network import (
    PnnForImageClassification,
    PnnForSequenceClassification,
)

CASES = [("refiner", rule) for rule in RULES] + [
    (variant, rule) for variant in VARIANTS if variant != "refiner" for rule in ("delta_norm", "patience")
]


def run(network: Any, batch: Batch, name: str = "none", steps: int = 5, min_steps: int = 1, **options: Any) -> Inferred:
    seeds = range(10, 10 + len(batch.inputs))
    return infer(network, batch, rule_of(name, **options), steps=steps, min_steps=min_steps, seeds=list(seeds))


def frozen_states(network: Any, batch: Batch, taken: torch.Tensor) -> torch.Tensor:
    """Compute all tokens at every step, and put back those that had left: the plain way, which saves nothing."""
    trunk = network.pnn
    embedded = trunk.embeddings(batch.inputs, batch.token_types)
    mask = trunk.mask(embedded, batch.attention_mask)
    state = embedded
    for step in range(int(taken.max())):
        state = torch.where((taken > step)[..., None], trunk.step(step, state, embedded, mask), state)
    return state


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_without_an_exit_it_is_the_network_itself(variant: str, steps: int) -> None:
    network, batch = network_of(**VARIANTS[variant]), batch_of(tokens_of(3))
    with torch.no_grad():
        states = network.pnn.states(batch.inputs, steps=steps)
        logits = network.predict(states[-1].flatten(0, 1)[batch.labelled])
    found = run(network, batch, steps=steps)
    assert torch.equal(found.states, states[-1])
    assert torch.equal(found.logits, logits)
    assert (found.steps == steps).all()


@pytest.mark.parametrize(
    ("variant", "rule"), [case for case in CASES if case[0] not in ("hierarchical", "step_embedding")]
)
def test_leaving_saves_work_and_changes_nothing_of_what_a_frozen_token_gives(variant: str, rule: str) -> None:
    """Whatever left is put back after every step of the full computation: states and predictions are the same."""
    network, batch = network_of(**VARIANTS[variant]), batch_of(tokens_of(4), [7, 4, 6, 5])
    found = run(network, batch, rule)
    assert batch.attention_mask is not None
    real = batch.attention_mask.bool()
    assert (found.steps[~real] == 0).all()
    assert (found.steps[real] >= 1).all() and (found.steps <= 5).all()
    with torch.no_grad():
        plain = frozen_states(network, batch, found.steps)
        predicted = network.predict(plain.flatten(0, 1)[batch.labelled])
    torch.testing.assert_close(found.states[real], plain[real], rtol=0, atol=1e-11)
    torch.testing.assert_close(found.logits, predicted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rule", ["delta_norm", "patience", "kl", "max_probability", "random"])
def test_the_rules_here_do_let_tokens_leave_at_different_steps(rule: str) -> None:
    """The tests around would prove little otherwise."""
    found = run(network_of(), batch_of(tokens_of(4), [7, 4, 6, 5]), rule)
    assert len(found.steps[found.steps > 0].unique()) > 1


@pytest.mark.parametrize(("variant", "rule"), CASES)
def test_an_example_alone_is_what_it_is_in_a_batch_and_padded(variant: str, rule: str) -> None:
    network, lengths = network_of(**VARIANTS[variant]), [7, 4, 6, 5]
    inputs = tokens_of(4, 9)
    whole = batch_of(inputs, lengths)
    found = run(network, whole, rule)
    at = 0
    for row, length in enumerate(lengths):
        labels = whole.labels[row : row + 1, :length]
        labelled = (labels.flatten() != NO_LABEL).nonzero().flatten()
        alone = Batch(inputs=inputs[row : row + 1, :length], labels=labels, labelled=labelled)
        single = infer(network, alone, rule_of(rule), steps=5, seeds=[10 + row])
        assert torch.equal(single.steps[0], found.steps[row, :length])
        torch.testing.assert_close(single.states[0], found.states[row, :length], rtol=0, atol=1e-11)
        torch.testing.assert_close(single.logits, found.logits[at : at + len(labelled)], rtol=0, atol=1e-11)
        at += len(labelled)


@pytest.mark.parametrize(("variant", "rule"), CASES)
def test_flops_are_what_torch_counts_of_the_products_that_ran(variant: str, rule: str) -> None:
    """Eager attention is written out as products, which torch can count on a processor."""
    network, batch = network_of(**VARIANTS[variant]), batch_of(tokens_of(4), [7, 4, 6, 5])
    fused = run(network, batch, rule)
    network.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        found = run(network, batch, rule)
    assert fused.flops == found.flops == counter.get_total_flops()
    torch.testing.assert_close(found.logits, fused.logits)


def test_a_token_that_left_takes_no_part_in_any_product() -> None:
    """All tokens but one of one example leave after step 1: each further step is a step of that token alone."""
    network, batch = network_of(), batch_of(tokens_of(3))
    rows: dict[str, list[int]] = {}
    for name, module in network.pnn.refiner.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, i, o, name=name: rows.setdefault(name, []).append(o[..., 0].numel()))
    stays = torch.zeros(21, dtype=torch.bool)
    stays[9] = True
    infer(network, batch, Planned(stays), steps=3)
    assert set(rows) == {"attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
                         "feed_forward.up", "feed_forward.down", "gate.query", "gate.key"}  # fmt: skip
    for name, counts in rows.items():
        # Keys and values of the six that left beside it are computed once more, from the states that they left with.
        assert counts == ([21, 6, 1, 1] if name in ("attention.k_proj", "attention.v_proj") else [21, 1, 1]), name


class Planned(Exit):
    """Lets everyone go but a few."""

    reads = "states"
    looks_back = 0.0

    def __init__(self, stays: torch.Tensor) -> None:
        self.stays = stays

    def __call__(self, look: ExitLook) -> tuple[torch.Tensor, torch.Tensor]:
        return ~self.stays[-len(look.after) :] if len(look.after) == 21 else look.memory.bool(), look.memory


@pytest.mark.parametrize("rule", ["patience", "kl", "max_probability"])
def test_rules_that_read_predictions_ask_labelled_tokens_alone(rule: str) -> None:
    """The vocabulary's logits are computed for no other token; the others stay until their example is decided."""
    network, batch = network_of(), batch_of(tokens_of(4))
    predicted: list[int] = []
    network.decoder.register_forward_hook(lambda m, i, o: predicted.append(len(o)))
    found = run(network, batch, rule)
    assert batch.labelled is not None and predicted[0] == len(batch.labelled)
    at = found.steps.flatten()[batch.labelled].view(4, 2)
    last = at.amax(1, keepdim=True)
    others = batch.labels == NO_LABEL
    assert (found.steps[others] == last.expand(4, LENGTH)[others]).all()
    assert sum(predicted) <= int(at.sum())  # one prediction a step at most, none twice from one state


def test_the_fewest_steps_are_taken_whatever_a_rule_says() -> None:
    found = run(network_of(), batch_of(tokens_of(3)), "delta_norm", threshold=1e6, min_steps=3)
    assert (found.steps == 3).all()


def test_rules_begin_to_look_when_they_must() -> None:
    """A look costs a prediction: with at least 4 steps, max_probability first looks after the 4th, kl after the 3rd."""
    network, batch = network_of(), batch_of(tokens_of(3))
    looks: list[int] = []
    network.decoder.register_forward_hook(lambda m, i, o: looks.append(len(o)))
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("max_probability", {"probability": 0.999999}, 2), ("kl", {"divergence": 1e-9}, 3), ("patience", {}, 3),
    ]  # fmt: skip
    for rule, options, expected in cases:
        looks.clear()
        run(network, batch, rule, min_steps=4, **options)
        assert len([look for look in looks if look]) == expected or rule == "patience"
        assert looks[0] == 6


def test_a_classifier_is_asked_about_its_first_token() -> None:
    network = network_of(PnnForSequenceClassification, num_labels=3)
    inputs = tokens_of(3)
    mask = (torch.arange(LENGTH) < torch.tensor([[7], [3], [5]])).long()
    batch = Batch(inputs=inputs, labels=torch.tensor([0, 2, 1]), attention_mask=mask)
    found = run(network, batch, "max_probability", probability=0.6)
    assert found.logits.shape == (3, 3)
    assert all((row[row > 0] == row[0]).all() for row in found.steps)
    torch.testing.assert_close(found.logits, network.predict(found.states[:, 0]))


def test_image_patches_leave_too() -> None:
    network = network_of(PnnForImageClassification, PnnVisionConfig, image_size=[6, 4], patch_size=2, num_channels=2,
                         num_labels=5)  # fmt: skip
    pixels = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(inputs=pixels, labels=torch.tensor([0, 1, 2]))
    found = run(network, batch, "delta_norm")
    torch.testing.assert_close(found.states, frozen_states(network, batch, found.steps), rtol=0, atol=1e-11)
    assert run(network, batch, "none").flops > found.flops


def test_separate_layers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"separate layers has no step to leave after: .* trunk is refiner"):
        run(network_of(trunk="layers"), batch_of(tokens_of(2)), "delta_norm")


def test_a_learned_exit_needs_its_head() -> None:
    with pytest.raises(ModelError, match=r"step_weights = 'linear': .* Train with that, or take another exit"):
        run(network_of(step_weights="linear"), batch_of(tokens_of(2)), "learned")


def test_counting_leaves_no_hook_behind() -> None:
    network = network_of()
    with counted(network):
        pass
    assert not any(module._forward_hooks for module in network.modules())
