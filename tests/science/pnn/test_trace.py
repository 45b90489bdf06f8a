"""Predictions after each step, against logits of the whole network; the tokens that are masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.subjects import FACTS, LENGTH, VOCABULARY, rows_of, tiny_pnn, tiny_subject

from raysweep.science.pnn.subject import masked_batches
from raysweep.trial.runtime import Runtime


def test_predictions_are_those_of_the_whole_network_after_each_step() -> None:
    subject = tiny_subject(sequences=37)  # three batches, the last one short
    found = subject.predictions(steps=5)
    assert found.loss.shape == found.predicted.shape == (6, 37 * 2)
    at = 0
    for batch in subject.batches:
        places = torch.nonzero(batch.labels != -100)
        for steps in range(1, 6):
            with torch.no_grad():
                logits = subject.network(batch.inputs, num_steps=steps).logits
            for number, (row, column) in enumerate(places.tolist(), at):
                probabilities = logits[row, column].softmax(-1).numpy()
                first, second = np.sort(probabilities)[[-1, -2]]
                label = int(batch.labels[row, column])
                assert found.loss[steps, number] == pytest.approx(-np.log(probabilities[label]))
                assert found.entropy[steps, number] == pytest.approx(-(probabilities * np.log(probabilities)).sum())
                assert found.margin[steps, number] == pytest.approx(np.log(first / second))
                assert found.confidence[steps, number] == pytest.approx(first)
                assert found.predicted[steps, number] == probabilities.argmax()
                assert found.labels[number] == label and found.positions[number] == column
        at += len(places)
    assert (found.divergence[0] == 0).all() and (found.divergence[1:] > 0).all()
    assert found.sequences.tolist() == [row for row in range(37) for _ in range(2)]


def test_masks_follow_from_the_row_alone_and_hide_every_label() -> None:
    rows = rows_of(3, 20)
    whole = masked_batches(rows, FACTS, Runtime(device=torch.device("cpu")))
    again = masked_batches(rows[:17], FACTS, Runtime(device=torch.device("cpu")))
    labels = torch.cat([batch.labels for batch in whole])
    inputs = torch.cat([batch.inputs for batch in whole])
    assert torch.equal(torch.cat([batch.labels for batch in again]), labels[:17])
    assert FACTS.mask_token is not None and (inputs[labels != -100] == FACTS.mask_token).all()
    assert torch.equal(torch.where(labels == -100, inputs, labels), torch.from_numpy(rows))


def test_without_context_the_embedding_predicts_the_same_for_a_place_everywhere() -> None:
    found = tiny_subject().predictions()
    by_place = {place: set(found.predicted[0, found.positions == place]) for place in range(LENGTH)}
    assert all(len(words) <= 1 for words in by_place.values())
    assert found.predicted.max() < VOCABULARY and tiny_pnn().config.num_steps == found.steps
