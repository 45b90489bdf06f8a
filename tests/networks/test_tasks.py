"""Tasks: labels only where something is to be told, and nothing that depends on the company of an example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    CLASSES,
    MASK_TOKEN,
    VOCABULARY,
    label_loss,
    rows_of,
    some_batch,
    some_examples,
    task_of,
    tiny_model,
)

from raysweep.contracts import Batch, Facts
from raysweep.job import registry
from raysweep.networks.plasticity.objective import NO_LABEL, example_losses, logits_of, losses_of

TASKS = {"gpt2": "causal_lm", "bert": "masked_lm", "bert-classes": "sequence_classification",
         "vit": "image_classification"}  # fmt: skip
SEEDS = range(100, 106)


def same(one: Batch, other: Batch) -> bool:
    pairs = [(one.inputs, other.inputs), (one.labels, other.labels), (one.attention_mask, other.attention_mask)]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def test_every_task_is_tried_here() -> None:
    assert sorted(TASKS.values()) == registry.available("tasks")
    assert all(type(task_of(kind)) is registry.load("tasks", name) for kind, name in TASKS.items())


@pytest.mark.parametrize("kind", TASKS)
def test_an_example_is_the_same_in_any_company_and_order(kind: str) -> None:
    task, examples = task_of(kind), some_examples(kind, 6)
    whole = task.batch(examples, SEEDS)
    for order in ([3], [5, 0], [2, 4, 1, 0]):
        assert same(rows_of(whole, order), task.batch(examples[order], [SEEDS[at] for at in order]))
    assert same(whole, task.batch(examples, SEEDS))


@pytest.mark.parametrize("kind", TASKS)
def test_examples_are_left_as_they_were_in_whatever_dtype_they_are_stored(kind: str) -> None:
    task, examples = task_of(kind), some_examples(kind, 6)
    stored = examples.astype(np.uint16)
    stored.setflags(write=False)  # as a memory-mapped file is
    assert same(task.batch(stored, SEEDS), task.batch(examples, SEEDS))
    assert np.array_equal(stored, examples)


@pytest.mark.parametrize("kind", TASKS)
def test_even_tasks_have_equally_many_labels_in_every_example(kind: str) -> None:
    task = task_of(kind)
    batch = some_batch(kind, 6)
    counts = (batch.labels.reshape(6, -1) != NO_LABEL).sum(1)
    assert task.even == (TASKS[kind] != "masked_lm")  # a window may hold tokens that are never hidden
    assert len(set(counts.tolist())) == 1 and counts[0] > 0


# Masked windows.


def masked(windows: int, length: int, seed: int = 0) -> tuple[np.ndarray, Batch]:
    examples = np.random.default_rng(seed).integers(0, VOCABULARY - 1, size=(windows, length))  # never the mask
    return examples, task_of("bert").batch(examples, range(seed, seed + windows))


@pytest.mark.parametrize(
    ("length", "chosen"), [(1, 1), (2, 1), (8, 1), (10, 2), (20, 3), (31, 5), (128, 19), (512, 77)]
)
def test_fifteen_percent_of_every_window_is_chosen_and_one_token_at_least(length: int, chosen: int) -> None:
    _, batch = masked(5, length)
    assert ((batch.labels != NO_LABEL).sum(1) == chosen).all()


def test_labels_are_the_true_tokens_where_chosen_and_all_else_stands_as_it_was() -> None:
    examples, batch = masked(50, 40)
    chosen = (batch.labels != NO_LABEL).numpy()
    assert np.array_equal(batch.labels.numpy()[chosen], examples[chosen])
    assert np.array_equal(batch.inputs.numpy()[~chosen], examples[~chosen])


def test_of_the_chosen_eight_in_ten_are_hidden_one_is_random_and_one_stays() -> None:
    examples, batch = masked(400, 200)
    chosen = (batch.labels != NO_LABEL).numpy()
    inputs, truth = batch.inputs.numpy()[chosen], examples[chosen]
    hidden, kept = (inputs == MASK_TOKEN).mean(), (inputs == truth).mean()
    assert len(truth) == 400 * 30
    assert hidden == pytest.approx(0.8 + 0.1 / VOCABULARY, abs=0.012)
    assert kept == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.012)
    drawn = inputs[(inputs != MASK_TOKEN) & (inputs != truth)]
    assert set(drawn.tolist()) == set(range(VOCABULARY - 1))
    assert np.bincount(np.nonzero(chosen)[1], minlength=200).min() > 30  # every position has its turn: 60 on average


def test_other_seeds_hide_other_tokens() -> None:
    examples = masked(1, 60)[0]
    first, second = (task_of("bert").batch(examples, [seed]).labels for seed in (1, 2))
    assert not torch.equal(first, second)


# Sentences and images.


def test_padding_is_neither_attended_to_nor_scored() -> None:
    model = tiny_model("bert-classes")
    examples = some_examples("bert-classes", 5)
    before = task_of("bert-classes").batch(examples, SEEDS[:5])
    assert before.attention_mask is not None
    assert before.attention_mask.sum(1).tolist() == examples[:, 1].tolist() and before.attention_mask.min() == 0
    other = examples.copy()
    padding = np.arange(12) >= examples[:, 1:2]
    other[:, 3:][padding] = 33
    after = task_of("bert-classes").batch(other, SEEDS[:5])
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, before), logits_of(model, after), rtol=0, atol=1e-12)
        for row in range(5):  # alone and without padding
            length = int(examples[row, 1])
            alone = task_of("bert-classes").batch(examples[row : row + 1, : 3 + length], [0])
            torch.testing.assert_close(logits_of(model, alone)[0], logits_of(model, before)[row], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["bert-classes", "vit", "pnn_vision"])
def test_a_classifier_has_one_label_an_example(kind: str) -> None:
    model, batch = tiny_model(kind), some_batch(kind, 6)
    assert batch.labels.tolist() == some_examples(kind, 6)[:, 0].tolist()
    logits = logits_of(model, batch)
    assert logits.shape == (6, CLASSES)
    torch.testing.assert_close(example_losses(losses_of(model, batch), batch.labels).mean(), label_loss(logits, batch))


def test_pixels_stand_by_channel_row_and_column_between_minus_one_and_one() -> None:
    task: Any = registry.load("tasks", "image_classification")(
        facts=Facts(num_classes=2, image_shape=(2, 2, 3), brightest=4)
    )
    batch = task.batch(np.array([[1, 0, 1, 2, 3, 4, 0, 4, 4, 4, 0, 0, 2]], np.uint8), [0])
    assert batch.inputs.tolist() == [[[[-1, -0.5, 0], [0.5, 1, -1]], [[1, 1, 1], [-1, -1, 0]]]]
    assert batch.labels.tolist() == [1]
