"""Movement of states and open gates, against arithmetic on the states; padding is left out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.subjects import LENGTH, tiny_pnn, tiny_subject

from raysweep.contracts import Batch
from raysweep.science.pnn.activity import Activity, activity, participation


def plain(batch: Batch) -> Activity:
    return activity(tiny_pnn(), [batch])


def test_norms_ratios_and_cosines_are_those_of_the_states() -> None:
    subject = tiny_subject(sequences=21)
    found = activity(subject.network, subject.batches)
    with torch.no_grad():
        states = torch.cat(
            [torch.stack(subject.network.pnn.states(b.inputs)).flatten(1, 2) for b in subject.batches], 1
        )
    updates = states.diff(dim=0).numpy()
    assert found.relative_update == pytest.approx(np.linalg.norm(updates, axis=-1) / states[:-1].norm(dim=-1).numpy())
    dots = (updates[1:] * updates[:-1]).sum(-1)
    norms = np.linalg.norm(updates, axis=-1)
    assert found.update_cosine == pytest.approx(dots / norms[1:] / norms[:-1])
    assert found.sequences.tolist() == [row for row in range(21) for _ in range(LENGTH)]
    assert found.masked.sum() == 21 * 2


def test_gate_figures_are_moments_of_the_gate() -> None:
    subject = tiny_subject(sequences=21)
    network, found = subject.network, activity(subject.network, subject.batches)
    with torch.no_grad():
        gates = []
        for batch in subject.batches:
            state, steps = network.pnn.embeddings(batch.inputs), []
            for _ in range(3):
                refiner = network.pnn.refiner
                proposed = refiner.transform(state, refiner.attention(state, state))
                steps.append(refiner.gate(state, proposed))
                state = state + steps[-1] * proposed
            gates.append(torch.stack(steps).flatten(1, 2))
    gate = torch.cat(gates, 1).numpy()
    assert found.gate_mean == pytest.approx(gate.mean(-1))
    assert found.gate_square == pytest.approx((gate**2).mean(-1))
    assert found.gate_open == pytest.approx((gate > 0.5).mean(-1))
    assert found.gate_variance == pytest.approx(gate.var(1))


def test_padding_changes_nothing() -> None:
    batch = tiny_subject().batches[0]
    short = dataclasses.replace(
        batch, inputs=batch.inputs[:, :9], labels=batch.labels[:, :9],
        labelled=torch.nonzero(batch.labels[:, :9].flatten() != -100)[:, 0],
    )  # fmt: skip
    mask = torch.zeros_like(batch.inputs)
    mask[:, :9] = 1
    labels = torch.where(mask == 1, batch.labels, -100)
    padded = dataclasses.replace(
        batch, labels=labels, attention_mask=mask, labelled=torch.nonzero(labels.flatten() != -100)[:, 0]
    )
    for name, values in vars(plain(short)).items():
        assert getattr(plain(padded), name) == pytest.approx(values), name


@pytest.mark.parametrize("options", [{"gate": "scalar"}, {"gate": "none"}, {"trunk": "layers"}])
def test_a_network_without_a_gate_of_its_inputs_has_no_gate_figures(options: dict[str, Any]) -> None:
    found = activity(tiny_pnn(**options), tiny_subject().batches)
    assert found.gate_mean is None and found.gate_variance is None and found.update_norm.shape[0] == 3


def test_participation_is_one_for_equal_sizes_and_one_over_the_width_for_a_single_dimension() -> None:
    updates = torch.tensor([[3.0, -3.0, 3.0, 3.0], [0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert participation(updates).tolist() == [1.0, 0.25, 0.0]
