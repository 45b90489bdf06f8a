"""Held-out loss is the mean over tokens, whatever the batches and ranks; a loss that is no number stops the trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    CAUSAL,
    DECODERS,
    VOCABULARY,
    causal,
    compacted,
    cpu,
    head_map_without,
    held_out_loss,
    some_tokens,
    tiny_model,
)

from raysweep.errors import DivergedError
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import NO_LABEL, example_losses, label_losses, mean_loss
from raysweep.trial.measures.evaluation import evaluate, repetition, shared_batches, write_samples
from raysweep.trial.runtime import Runtime


def some_windows(count: int = 7, length: int = 12) -> np.ndarray:
    return some_tokens(count, length, seed=5).numpy().astype(np.uint16)


def explicit_loss(model: PlasticModel, windows: np.ndarray) -> float:
    """Add up -log p of every token but the first of each window, one by one."""
    total, count = 0.0, 0
    for window in windows.astype(int).tolist():
        with torch.no_grad():
            log_probabilities = model(torch.tensor([window]))[0].log_softmax(-1)
        for position, target in enumerate(window[1:]):
            total -= float(log_probabilities[position, target])
            count += 1
    return total / count


@dataclass(frozen=True, kw_only=True)
class OneOf(Runtime):
    """A rank of a group that is run one rank after the other."""

    number: int
    ranks: int

    @property
    def rank(self) -> int:
        return self.number

    @property
    def world_size(self) -> int:
        return self.ranks


def one_of(number: int, ranks: int) -> OneOf:
    return OneOf(device=torch.device("cpu"), number=number, ranks=ranks)


# The loss.


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_the_loss_is_the_mean_over_predicted_tokens_for_any_batch_size(kind: str, batch_size: int) -> None:
    model, windows = tiny_model(kind), some_windows()
    model.set_gates(head_map_without(model, (0, 1), (2, 0)))
    assert held_out_loss(model, windows, batch_size, cpu(), "fp32") == pytest.approx(
        explicit_loss(model, windows), rel=1e-9
    )


def test_closed_gates_are_part_of_what_is_measured() -> None:
    model, windows = tiny_model("gpt2"), some_windows()
    whole = held_out_loss(model, windows, 4, cpu(), "fp32")
    model.set_gates(head_map_without(model, (1, 1)))
    assert abs(held_out_loss(model, windows, 4, cpu(), "fp32") - whole) > 1e-3


def test_measuring_switches_dropout_off_and_restores_the_training_mode() -> None:
    model, windows = tiny_model("gpt2"), some_windows()
    expected = held_out_loss(model, windows, 4, cpu(), "fp32")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    assert held_out_loss(model, windows, 4, cpu(), "fp32") == expected
    assert model.training
    model.eval()
    held_out_loss(model, windows, 4, cpu(), "fp32")
    assert not model.training


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_on_a_cpu_only_bf16_asks_for_less_than_full_precision(precision: str) -> None:
    model, windows = tiny_model("opt", dtype=torch.float32), some_windows()
    full = explicit_loss(model, windows)
    assert held_out_loss(model, windows, 4, cpu(), precision) == pytest.approx(full, rel=1e-6)
    rough = held_out_loss(model, windows, 4, cpu(), "bf16")
    assert rough == pytest.approx(full, rel=3e-2) and rough != pytest.approx(full, rel=1e-5)


def test_losses_leave_out_the_last_token_of_every_window_and_add_in_full_precision() -> None:
    logits = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 1, 2, 3], [5, 4, 3, 2]])
    labels = causal(tokens).labels
    probabilities = logits.log_softmax(-1)
    each = torch.tensor([[-probabilities[b, t, tokens[b, t + 1]] for t in range(3)] for b in range(2)])
    torch.testing.assert_close(label_losses(logits, labels), torch.nn.functional.pad(each, (0, 1)))
    torch.testing.assert_close(mean_loss(label_losses(logits, labels), labels), each.mean())
    half = mean_loss(label_losses(logits.bfloat16(), labels), labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, mean_loss(label_losses(logits.bfloat16().float(), labels), labels))


def test_each_example_counts_its_own_labels_only() -> None:
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, NO_LABEL, 2, NO_LABEL], [NO_LABEL] * 4, [NO_LABEL, 0, NO_LABEL, NO_LABEL]])
    losses = -logits.log_softmax(-1)
    expected = torch.stack([(losses[0, 0, 1] + losses[0, 2, 2]) / 2, torch.zeros(()), losses[2, 1, 0]])
    torch.testing.assert_close(example_losses(label_losses(logits, labels), labels), expected)
    of_examples = torch.tensor([4, NO_LABEL, 3])  # one label an example, as a classifier has
    expected = torch.stack([losses[0, 0, 4], torch.zeros(()), losses[2, 0, 3]])
    torch.testing.assert_close(example_losses(label_losses(logits[:, 0], of_examples), of_examples), expected)


def test_accuracy_is_the_share_of_labels_hit() -> None:
    model, windows = tiny_model("gpt2"), some_windows()
    with torch.no_grad():
        guesses = model(torch.from_numpy(windows.astype(np.int64))).argmax(-1)[:, :-1]
    hits = (guesses.numpy() == windows[:, 1:]).mean()
    windows[:, -1] = guesses[:, -1]  # sure hits
    more = (guesses.numpy() == windows[:, 1:]).mean()
    measured = evaluate(model, shared_batches(windows, 3, CAUSAL, cpu()), cpu(), "fp32")
    assert measured.accuracy == pytest.approx(more) and more > hits


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_a_divergence(bad: float) -> None:
    model = tiny_model("llama")
    model.network.model.norm.weight.data[3] = bad
    model.train()
    with pytest.raises(DivergedError, match="held-out loss is nan"):
        held_out_loss(model, some_windows(), 4, cpu(), "fp32")


# Ranks.


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 9])
def test_ranks_share_all_windows_without_overlap(ranks: int) -> None:
    windows = some_windows()
    shares = [
        [window for batch in shared_batches(windows, 2, CAUSAL, one_of(number, ranks))
         for window in batch.inputs.tolist()]
        for number in range(ranks)
    ]  # fmt: skip
    assert sorted(window for share in shares for window in share) == sorted(windows.tolist())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_uneven_shares_give_every_rank_the_loss_of_one(ranks: int) -> None:
    model, windows = tiny_model("gpt2"), some_windows()
    one = held_out_loss(model, windows, 3, cpu(), "fp32")
    sent: list[torch.Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Recording(OneOf):
        def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
            sent.append(tensor.clone())
            return torch.ones_like(tensor)

    for number in range(ranks):
        held_out_loss(model, windows, 3, Recording(device=torch.device("cpu"), number=number, ranks=ranks), "fp32")
    total, _, count = torch.stack(sent).sum(0).tolist()
    assert count == 7 * 11
    assert total / count == pytest.approx(one, rel=1e-12)


# Samples.


class Spelled:
    """A tokenizer whose words are the ids."""

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def written(model: PlasticModel, windows: np.ndarray) -> list[dict[str, Any]]:
    return write_samples(model, windows, Spelled(), cpu())


def greedy(network: Any, prompt: list[int], count: int) -> list[int]:
    """Continue token by token, the whole text each time."""
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", DECODERS)
def test_samples_are_greedy_continuations_by_the_model_without_its_absent_heads(kind: str) -> None:
    model, windows = tiny_model(kind), some_windows(5, 24)
    head_map = head_map_without(model, (0, 1), (1, 0), (2, 2))
    model.set_gates(head_map)
    model.train()
    samples = written(model, windows)
    assert model.training
    smaller = compacted(kind, model, head_map).eval()
    assert len(samples) == 3
    for sample, window in zip(samples, windows.tolist(), strict=False):
        prompt = window[:12]
        expected = greedy(smaller, prompt, 12)
        assert sample["prompt"] == Spelled().decode(prompt)
        assert sample["text"] == Spelled().decode(expected)
        assert sample["repetition"] == repetition(expected)


def test_samples_fill_a_window_and_no_more() -> None:
    model = tiny_model("gpt2")  # 32 positions
    for length, prompt, text in ((32, 16, 16), (9, 4, 5)):
        for sample in written(model, some_windows(2, length)):
            assert len(sample["prompt"].split()) == prompt and len(sample["text"].split()) == text
            assert all(0 <= int(word) < VOCABULARY for word in sample["text"].split())


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0), ([1, 2], 0), ([1, 2, 3], 0), ([1, 1, 1, 1], 1 / 2), ([1, 2, 3, 1, 2, 3], 1 / 4), ([7] * 12, 9 / 10)],
)
def test_repetition_is_the_share_of_3_grams_seen_before(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)
