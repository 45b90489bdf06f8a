"""Streamed entropies equal those of explicit maps, whatever is visible, and never leave [0, 1]."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import causal, some_tokens, tiny_model

from raysweep.contracts import Batch, HeadStatistics
from raysweep.networks.plasticity import attention_statistics as module
from raysweep.networks.plasticity.attention_statistics import AttentionStatistics, attention_statistics
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.probe import probe

MEASURED = ("entropy", "sink_mass", "sink_free_entropy")


def drawn(
    batch: int = 2, heads: int = 6, shared: int = 2, length: int = 150, dtype: Any = torch.float32, spread: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, length, 8, generator=generator, dtype=torch.float64) * spread
    key = torch.randn(batch, shared, length, 8, generator=generator, dtype=torch.float64)
    return query.to(dtype), key.to(dtype)


def measured(query: torch.Tensor, key: torch.Tensor, mask: Any = None, **options: Any) -> AttentionStatistics:
    first = torch.zeros(len(query), dtype=torch.long)
    return attention_statistics(query, key, mask, **{"scaling": 0.4, "causal": True, "first": first, **options})


def explicit(query: torch.Tensor, key: torch.Tensor, visible: torch.Tensor, first: list[int]) -> dict[str, np.ndarray]:
    """Compute entropies from whole maps in fp64, query by query; where they are not defined, zeros."""
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.double() @ key.mT * 0.4
    maps = scores.masked_fill(~visible, -math.inf).softmax(-1)
    found = {name: np.zeros(query.shape[:3]) for name in MEASURED}
    for b, h, t in np.ndindex(*query.shape[:3]):
        seen = torch.nonzero(visible[b, h, t]).flatten().tolist()
        row = maps[b, h, t].tolist()
        if len(seen) >= 2:
            found["entropy"][b, h, t] = -sum(row[j] * math.log(row[j]) for j in seen if row[j] > 0) / math.log(
                len(seen)
            )
        found["sink_mass"][b, h, t] = row[first[b]] if seen else 0.0
        others = [j for j in seen if j != first[b]]
        if len(others) >= 2:
            rest = scores[b, h, t, others].softmax(-1).tolist()
            found["sink_free_entropy"][b, h, t] = -sum(p * math.log(p) for p in rest if p > 0) / math.log(len(others))
    return found


def padded(length: int, side: str, pads: tuple[int, ...] = (0, 7)) -> torch.Tensor:
    """Return which tokens are real, (batch, tokens)."""
    real = torch.ones(len(pads), length, dtype=torch.bool)
    for row, count in zip(real, pads, strict=True):
        if count:
            row[:count] = row[:count] & False if side == "left" else row[:count]
            if side == "right":
                row[-count:] = False
    return real


@pytest.mark.parametrize("causal_", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [3, 65, 130])
def test_statistics_equal_those_of_explicit_maps(causal_: bool, dtype: Any, length: int) -> None:
    query, key = drawn(length=length, dtype=dtype)
    visible = torch.ones(2, 6, length, length, dtype=torch.bool)
    expected = explicit(query, key, visible.tril() if causal_ else visible, [0, 0])
    found = measured(query, key, causal=causal_)
    for name in MEASURED:
        error = np.abs(getattr(found, name).numpy() - expected[name]).max()
        assert error < (1e-5 if dtype == torch.float32 else 1e-12), name


@pytest.mark.parametrize("form", ["bool", "additive", "infinite"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal_", [True, False])
def test_a_mask_says_what_is_visible(form: str, side: str, causal_: bool) -> None:
    query, key = drawn(length=80)
    real = padded(80, side)
    visible = real[:, None, None, :].expand(2, 1, 80, 80)
    visible = visible & torch.ones(80, 80, dtype=torch.bool).tril() if causal_ else visible
    lowest = torch.finfo(torch.float32).min if form == "additive" else -math.inf
    mask = visible if form == "bool" else torch.zeros(2, 1, 80, 80).masked_fill(~visible, lowest)
    first = real.long().argmax(1)
    expected = explicit(query, key, visible.expand(2, 6, 80, 80), first.tolist())
    found = measured(query, key, mask, first=first)
    for name in MEASURED:
        rows = real[:, None, :].expand(2, 6, 80).numpy()
        np.testing.assert_allclose(getattr(found, name).numpy()[rows], expected[name][rows], atol=1e-5, err_msg=name)
        assert getattr(found, name).isfinite().all()
    assert torch.equal(found.visible[:, 0][real], visible.sum(-1)[:, 0][real])


def test_a_bias_on_the_scores_counts() -> None:
    query, key = drawn(length=12)
    bias = torch.randn(1, 6, 12, 12, generator=torch.Generator().manual_seed(1))
    found = measured(query, key, bias, causal=False)
    maps = (query @ key.repeat_interleave(3, dim=1).mT * 0.4 + bias).softmax(-1)
    expected = torch.special.entr(maps).sum(-1) / math.log(12)
    torch.testing.assert_close(found.entropy, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [2, 3, 17, 64, 130])
def test_uniform_attention_is_one_and_attention_to_one_key_zero(length: int) -> None:
    query, key = drawn(length=length, spread=0.0)
    found = measured(query, key)
    torch.testing.assert_close(found.entropy[..., 1:], torch.ones(2, 6, length - 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sink_free_entropy[..., 2:], torch.ones(2, 6, length - 2), atol=1e-6, rtol=0)
    query, key = torch.ones(1, 1, length, 1), torch.zeros(1, 1, length, 1)
    for target in (0, 1):
        key.zero_()[:, :, target] = 1e4
        found = measured(query, key)
        assert (found.entropy[..., max(1, target) :] == 0).all()
        assert (found.sink_mass[..., max(1, target) :] == 1.0 - target).all()


def test_where_the_first_token_takes_all_the_rest_has_its_limit() -> None:
    query, key = drawn(length=40, dtype=torch.float64)
    plain = measured(query, key)
    biased = torch.zeros(1, 1, 40, 40).masked_fill(torch.ones(40, 40, dtype=torch.bool).triu(1), -math.inf)
    biased[..., 0] += 1e4
    found = measured(query, key, biased.double())
    assert (found.sink_mass == 1).all() and (found.entropy == 0).all()
    torch.testing.assert_close(found.sink_free_entropy, plain.sink_free_entropy)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropies_never_leave_the_unit_interval(spread: float, dtype: Any) -> None:
    query, key = drawn(spread=spread, dtype=dtype)
    found = measured(query, key)
    for name in MEASURED:
        values = getattr(found, name)
        assert values.dtype == torch.float32
        assert float(values.min()) >= 0.0 and float(values.max()) <= 1.0


def test_no_more_than_a_block_of_scores_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[torch.Size] = []
    whole = module._of_block

    def recorded(scores: torch.Tensor, *rest: Any) -> Any:
        sizes.append(scores.shape)
        return whole(scores, *rest)

    monkeypatch.setattr(module, "_of_block", recorded)
    measured(*drawn(length=150))
    assert [shape[2] for shape in sizes] == [64, 64, 22]
    assert [shape[3] for shape in sizes] == [64, 128, 150]


# In whole models.


def statistics_of(kind: str, *batches: Batch) -> HeadStatistics:
    model = tiny_model(kind)
    return probe(model, batches, HeadMap.full(*model.shape), lambda tensor: tensor)


def with_padding(tokens: torch.Tensor, lengths: list[int], side: str) -> Batch:
    """Cut windows to lengths, and fill up on one side."""
    width = max(lengths)
    inputs, labels = torch.zeros(len(lengths), width, dtype=torch.long), torch.full((len(lengths), width), -100)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        inputs[row, place], mask[row, place] = tokens[row, :length], 1
        labels[row, place] = causal(tokens[row : row + 1, :length]).labels[0]
    return Batch(inputs=inputs, labels=labels, attention_mask=mask)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "llama-gqa"])
def test_padding_on_either_side_changes_no_statistic(kind: str, side: str) -> None:
    """Rotary positions are relative, so a shifted window is the same window."""
    tokens = some_tokens(3, 14)
    lengths = [14, 9, 11]
    alone = [causal(tokens[row : row + 1, :length]) for row, length in enumerate(lengths)]
    expected, found = statistics_of(kind, *alone), statistics_of(kind, with_padding(tokens, lengths, side))
    for name in ("taylor", "fisher", "signed_taylor", "output_norm", *MEASURED):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_order_and_the_size_of_batches_change_nothing() -> None:
    tokens = some_tokens(6, 20)
    expected = statistics_of("gpt2", causal(tokens))
    found = statistics_of("gpt2", *(causal(tokens[[row]]) for row in (3, 0, 5, 4, 1, 2)))
    for name in ("taylor", "fisher", "signed_taylor", "output_norm", *MEASURED):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "llama-gqa"])
def test_fp32_models_agree_with_fp64_models(kind: str) -> None:
    tokens = some_tokens(3, 24)
    found = []
    for dtype in (torch.float32, torch.float64):
        model = tiny_model(kind, dtype=dtype)
        found.append(probe(model, [causal(tokens)], HeadMap.full(*model.shape), lambda tensor: tensor))
    for name in MEASURED:
        np.testing.assert_allclose(getattr(found[0], name), getattr(found[1], name), atol=1e-5, err_msg=name)


def test_a_bidirectional_model_sees_all_keys() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8, vocab_size=48)
    config._attn_implementation = "sdpa"
    network = BertModel(config, add_pooling_layer=False).eval()
    seen: list[tuple[Any, ...]] = []
    inner = network.encoder.layer[0].attention
    tokens, mask = some_tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    with torch.no_grad():
        plain = network(tokens, attention_mask=mask).last_hidden_state
        with module.watched_attention(network, {inner: lambda *shown: seen.append(shown)}):
            watched = network(tokens, attention_mask=mask).last_hidden_state
            network(tokens)
        network(tokens)
    assert torch.equal(plain, watched) and len(seen) == 2 and not module._watchers
    (query, key, shown, scaling, causal_), (*_, none, _, bidirectional) = seen
    found = attention_statistics(
        query, key, shown, scaling=scaling, causal=causal_, first=torch.zeros(2, dtype=torch.long)
    )  # fmt: skip
    assert found.visible[0].unique().tolist() == [9] and found.visible[1].unique().tolist() == [6]
    assert none is None and not bidirectional and not causal_


def test_queries_at_padding_are_left_out() -> None:
    tokens = some_tokens(2, 12)
    batch = with_padding(tokens, [12, 5], "right")
    other = replace(batch, inputs=batch.inputs.clone())
    other.inputs[1, 5:] = 17  # what stands at padding must not matter
    first, second = statistics_of("opt", batch), statistics_of("opt", other)
    for name in ("output_norm", *MEASURED):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-9, err_msg=name)
