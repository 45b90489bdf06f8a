"""Parts held at their means, against the same arithmetic written out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.subjects import LENGTH, WIDTH, tiny_pnn, tiny_subject

from raysweep.science.pnn.interventions import Part, changed, observed
from raysweep.science.pnn.replacing import final_losses, held_at, part_means

PARTS: tuple[Part, ...] = ("attention", "proposal", "gate")


def outputs(network: Any, part: Part, batch: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    with torch.no_grad(), observed(network, part, lambda _, output: seen.append(output)):
        network.pnn.states(batch.inputs, batch.attention_mask)
    return seen


def padded(subject: Any) -> Any:
    """Let the last tokens of every other sequence be padding that is nowhere labelled."""
    batches = []
    for batch in subject.batches:
        mask = torch.ones_like(batch.inputs)
        mask[::2, LENGTH - 4 :] = 0
        labels = torch.where(mask > 0, batch.labels, -100)
        batches.append(dataclasses.replace(
            batch, labels=labels, attention_mask=mask, labelled=torch.nonzero(labels.flatten() != -100)[:, 0]
        ))  # fmt: skip
    return dataclasses.replace(subject, batches=batches)


def test_final_losses_are_those_of_the_last_step() -> None:
    subject = tiny_subject(sequences=19)  # the last batch is smaller
    assert final_losses(subject.network, subject.batches) == pytest.approx(subject.predictions().loss[-1])


@pytest.mark.parametrize("trunk", ["refiner", "hierarchical"])
@pytest.mark.parametrize("part", PARTS)
def test_means_are_over_all_tokens_that_are_no_padding(trunk: str, part: Part) -> None:
    subject = padded(tiny_subject(tiny_pnn(trunk=trunk), sequences=19))
    means = part_means(subject.network, part, subject.batches)
    calls = zip(*(outputs(subject.network, part, batch) for batch in subject.batches), strict=True)
    kept = torch.cat([batch.attention_mask for batch in subject.batches]) > 0
    for mean, call in zip(means, calls, strict=True):
        assert mean.shape == (WIDTH,)
        torch.testing.assert_close(mean, torch.cat(call)[kept].mean(0))
    assert len(means) == 3 * (2 if trunk == "hierarchical" and part != "gate" else 1)


@pytest.mark.parametrize("trunk", ["refiner", "hierarchical"])
def test_only_the_chosen_steps_are_held_and_each_call_at_its_own_mean(trunk: str) -> None:
    subject = tiny_subject(tiny_pnn(trunk=trunk))
    network, batch = subject.network, subject.batches[0]
    means = {part: part_means(network, part, subject.batches) for part in PARTS}
    with held_at(network, means, ["attention", "gate"], [1]):
        attention, gates = outputs(network, "attention", batch), outputs(network, "gate", batch)
    blocks = len(attention) // 3
    for call, output in enumerate(attention):
        assert torch.equal(output, means["attention"][call].expand_as(output)) == (call // blocks == 1)
    assert [torch.equal(gate, means["gate"][step].expand_as(gate)) for step, gate in enumerate(gates)] == [
        False, True, False,
    ]  # fmt: skip


def test_holding_everything_leaves_the_embedding_plus_mean_updates() -> None:
    subject = tiny_subject()
    means = {part: part_means(subject.network, part, subject.batches) for part in PARTS}
    batch = subject.batches[0]
    with torch.no_grad(), held_at(subject.network, means, ["proposal", "gate"], range(3)):
        states = subject.network.pnn.states(batch.inputs)
    update = sum(gate * proposal for gate, proposal in zip(means["gate"], means["proposal"], strict=True))
    torch.testing.assert_close(states[-1], states[0] + update)


def test_before_its_norm_the_feed_forward_part_cannot_be_scaled_away() -> None:
    """The reason to replace an output behind the LayerNorm: a factor in front of it changes next to nothing."""
    subject = tiny_subject()
    intact = final_losses(subject.network, subject.batches)
    hook = subject.network.pnn.refiner.feed_forward.register_forward_hook(lambda *given: given[2] * 0.25)
    before = final_losses(subject.network, subject.batches)
    hook.remove()
    with changed(subject.network, "proposal", lambda _, proposal: proposal * 0.25):
        behind = final_losses(subject.network, subject.batches)
    assert np.abs(before - intact).max() < 0.01 < 0.1 < np.abs(behind - intact).max()
