"""The comparison of two networks, against closed forms and against plain transformers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.finished import finished_sweep
from support.helpers import (
    DECODERS,
    POSITIONS,
    VOCABULARY,
    causal,
    head_map_without,
    rows_of,
    some_batch,
    some_tokens,
    tiny_model,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from raysweep.cli import main
from raysweep.contracts import Batch
from raysweep.errors import DivergedError, ModelError
from raysweep.networks.plasticity.attention_divergence import Attended, attention_divergence
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.science.preservation import Preservation, compare
from raysweep.trial.exports.write import export

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 60


def whole(model: PlasticModel) -> tuple[PlasticModel, HeadMap]:
    return model, HeadMap.full(*model.shape)


def compared(one: PlasticModel, other: PlasticModel, *batches: Batch) -> Preservation:
    return compare(whole(one), whole(other), batches)


# A network against itself.


@pytest.mark.parametrize("kind", [*DECODERS, "bert", "roberta"])
def test_a_network_preserves_its_own_function_exactly(kind: str) -> None:
    one, other = (tiny_model(kind, dtype=torch.float32) for _ in range(2))
    found = compared(one, other, some_batch(kind, 3), some_batch(kind, 2, seed=1))
    assert (found.kl, found.agreement, found.difference.mean) == (0.0, 1.0, 0.0)
    assert found.logit_cosine == pytest.approx(1, abs=1e-12) and found.loss == found.other_loss
    assert [layer.cosine for layer in found.layers] == pytest.approx([1.0] * 4, abs=1e-12)
    assert [layer.cka for layer in found.layers] == pytest.approx([1.0] * 4, abs=1e-12)
    assert {value for row in found.divergence for value in row} == {0.0}
    assert found.windows == 5


# Planted differences whose numbers are known.


def biased(logits: torch.Tensor) -> PlasticModel:
    """Return a BERT whose logits are the same everywhere."""
    model = tiny_model("bert", dtype=torch.float32)
    head: Any = model.network.cls.predictions
    with torch.no_grad():
        head.transform.LayerNorm.weight.zero_()
        head.transform.LayerNorm.bias.zero_()
        head.bias.copy_(logits)
    return model


def test_two_logits_that_change_places_have_a_closed_form() -> None:
    """KL = (p_i - p_j)(b_i - b_j), 1 - cosine = (b_i - b_j)^2 / |b|^2, and each label loses what its logit does."""
    logits = torch.arange(VOCABULARY, dtype=torch.float32) / 20
    i, j = VOCABULARY - 1, 3
    swapped = logits.clone()
    swapped[[i, j]] = logits[[j, i]]
    batch = some_batch("bert", 6)
    found = compared(biased(logits), biased(swapped), batch)
    p, gap = logits.double().softmax(0), float(logits[i] - logits[j])
    assert found.kl == pytest.approx(float(p[i] - p[j]) * gap, rel=1e-6)
    assert found.logit_cosine == pytest.approx(1 - gap**2 / float(logits.double().square().sum()), rel=1e-6)
    assert found.agreement == 0.0  # the largest logit is one of the two
    labels = batch.labels[batch.labels != -100]
    expected = logits.double()[labels] - swapped.double()[labels]
    assert found.difference.mean == pytest.approx(float(expected.mean()), abs=1e-6)
    assert found.predictions == len(labels)
    assert found.other_loss - found.loss == pytest.approx(found.difference.mean, abs=1e-9)


def test_the_interval_resamples_windows() -> None:
    """Two windows, each with one label: the mean of a resample is one of both or their mean."""
    logits = torch.linspace(0, 2, VOCABULARY)
    batch = some_batch("bert", 2)
    labels = torch.full_like(batch.labels, -100)
    labels[0, 1], labels[1, 4] = 5, 40
    places = torch.nonzero(labels.flatten() != -100)[:, 0]
    planted = Batch(inputs=batch.inputs, labels=labels, labelled=places)
    found = compared(biased(logits), biased(logits.flip(0)), planted)
    both = [float(logits[label] - logits.flip(0)[label]) for label in (5, 40)]
    assert found.difference.mean == pytest.approx(np.mean(both), abs=1e-5)
    assert (found.difference.low, found.difference.high) == pytest.approx((min(both), max(both)), abs=1e-5)


def test_the_divergence_is_taken_from_the_first_model_to_the_second() -> None:
    one, other = biased(torch.linspace(0, 3, VOCABULARY)), biased(torch.linspace(1, 0, VOCABULARY))
    p, q = (torch.linspace(*ends, VOCABULARY).double().softmax(0) for ends in ((0, 3), (1, 0)))
    there, back = (float((a * (a / b).log()).sum()) for a, b in ((p, q), (q, p)))
    assert abs(there - back) > 0.01
    assert compared(one, other, some_batch("bert")).kl == pytest.approx(there, rel=1e-5)
    assert compared(other, one, some_batch("bert")).kl == pytest.approx(back, rel=1e-5)


class Oracle:
    """Logits, hidden states and attention of plain transformers, with nothing of raysweep's."""

    def __init__(self, model: PlasticModel, tokens: torch.Tensor) -> None:
        network: Any = model.network
        network.set_attn_implementation("eager")
        with torch.no_grad():
            seen = network(input_ids=tokens, output_attentions=True, output_hidden_states=True)
        network.set_attn_implementation("sdpa")
        self.logits, self.states = seen.logits.double(), [state.double() for state in seen.hidden_states]
        self.maps = [attention.double() for attention in seen.attentions]


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    mean = (p + q) / 2
    return ((torch.xlogy(p, p) + torch.xlogy(q, q)) / 2 - torch.xlogy(mean, mean)).sum(-1)


def with_uniform_head(kind: str, layer: int, head: int) -> PlasticModel:
    model = tiny_model(kind, dtype=torch.float32)
    for part in model.sites[layer].head_slices(head):
        if part.role == "query":
            model.network.get_parameter(part.parameter).data.narrow(part.dim, part.start, part.length).zero_()
    return model


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "gpt_neox"])
def test_a_head_that_looks_elsewhere_is_found_where_it_is(kind: str) -> None:
    one, other = tiny_model(kind, dtype=torch.float32), with_uniform_head(kind, 1, 2)
    tokens = some_tokens(3, 12)
    found = compared(one, other, causal(tokens))
    ours, theirs = Oracle(one, tokens), Oracle(other, tokens)
    visible = torch.arange(1, 13, dtype=torch.float64)
    torch.testing.assert_close(theirs.maps[1][0, 2], torch.ones(12, 12).double().tril() / visible[:, None])
    for layer, row in enumerate(found.divergence):
        expected = jensen_shannon(ours.maps[layer], theirs.maps[layer])[:, :, 1:].mean((0, 2))
        assert row == pytest.approx(expected.tolist(), abs=1e-6)
    before = [*found.divergence[0], *(value for head, value in enumerate(found.divergence[1]) if head != 2)]
    there = found.divergence[1][2]
    assert set(before) == {0.0} and there is not None and there > 0.01
    assert min(value for value in found.divergence[2] if value is not None) > 0
    for layer, (a, b) in enumerate(zip(ours.states, theirs.states, strict=True)):
        assert found.layers[layer].cosine == pytest.approx(
            float(torch.cosine_similarity(a, b, dim=-1).mean()), abs=1e-6
        )
    log, other_log = ours.logits.log_softmax(-1)[:, :-1], theirs.logits.log_softmax(-1)[:, :-1]
    assert found.kl == pytest.approx(float((log.exp() * (log - other_log)).sum(-1).mean()), rel=1e-4)
    same = ours.logits.argmax(-1) == theirs.logits.argmax(-1)
    assert found.agreement == pytest.approx(float(same[:, :-1].double().mean()))
    assert found.layers[1].cka == 1.0 and found.layers[2].cka is not None and found.layers[2].cka < 1


def looking_at(scores: torch.Tensor, *, causal: bool = False, mask: torch.Tensor | None = None) -> Attended:
    """Return attention inputs that give one head these scores, (queries, keys)."""
    keys = torch.eye(scores.shape[1])[None, None]
    return Attended(query=scores[None, None], key=keys, mask=mask, scaling=1.0, causal=causal)


def test_attention_divergence_has_its_closed_forms() -> None:
    n = 5
    uniform = looking_at(torch.zeros(1, n))
    first, second = (looking_at(torch.tensor([[0.0] * at + [1e4] + [0.0] * (n - 1 - at)])) for at in (0, 1))
    mean = (1 + 1 / n) / 2
    expected = ((n - 1) / n * math.log(2) + math.log(1 / n / mean) / n - math.log(mean)) / 2
    divergence, visible = attention_divergence(uniform, first)
    assert float(divergence) == pytest.approx(expected) and int(visible) == n
    assert float(attention_divergence(first, uniform)[0]) == pytest.approx(expected)
    assert float(attention_divergence(first, second)[0]) == math.log(2)
    assert float(attention_divergence(first, first)[0]) == 0.0


def test_hidden_keys_are_not_looked_at_however_they_are_hidden() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, others = (torch.randn(70, 70, generator=generator) for _ in range(2))
    later = torch.ones(70, 70, dtype=torch.bool).tril()
    added = torch.zeros(70, 70).masked_fill(~later, torch.finfo(torch.float32).min)
    p, q = (x.double().masked_fill(~later, -math.inf).softmax(-1) for x in (scores, others))
    ways: list[dict[str, Any]] = [{"causal": True}, {"mask": later[None, None]}, {"mask": added[None, None]}]
    for one in ways:
        for other in ways:
            found, visible = attention_divergence(looking_at(scores, **one), looking_at(others, **other))
            torch.testing.assert_close(found[0, 0], jensen_shannon(p, q), atol=1e-9, rtol=0)
            assert visible[0, 0].tolist() == list(range(1, 71))


# What is left out.


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "opt"])
def test_padding_counts_nowhere(kind: str) -> None:
    one, other = tiny_model(kind, dtype=torch.float32), tiny_model(kind, dtype=torch.float32, seed=1)
    tokens = some_tokens(2, 9)
    padded = torch.nn.functional.pad(tokens, (0, 4), value=7)
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (0, 4))
    labels = torch.nn.functional.pad(causal(tokens).labels, (0, 4), value=-100)
    found = compared(one, other, Batch(inputs=padded, labels=labels, attention_mask=mask))
    expected = compared(one, other, causal(tokens))
    assert found.predictions == expected.predictions == 16
    assert found.kl == pytest.approx(expected.kl, rel=1e-5)
    assert found.logit_cosine == pytest.approx(expected.logit_cosine, rel=1e-5)
    for with_pads, without in zip(found.layers, expected.layers, strict=True):
        assert (with_pads.cosine, with_pads.cka) == pytest.approx((without.cosine, without.cka), abs=1e-5)
    np.testing.assert_allclose(np.array(found.divergence, float), np.array(expected.divergence, float), atol=1e-6)


def test_batches_do_not_matter_and_every_window_weighs_its_tokens() -> None:
    one, other = tiny_model("gpt2", dtype=torch.float32), tiny_model("gpt2", dtype=torch.float32, seed=1)
    batch = causal(some_tokens(5, 11))
    together = compared(one, other, batch)
    apart = compared(one, other, *(rows_of(batch, slice(at, at + 1)) for at in range(5)))
    assert together.kl == pytest.approx(apart.kl, rel=1e-5)
    assert together.difference.low == pytest.approx(apart.difference.low, abs=1e-5)
    assert together.layers[2].cka == pytest.approx(apart.layers[2].cka, abs=1e-5)


def test_absent_heads_keep_their_places_and_have_no_divergence() -> None:
    one, other = tiny_model("gpt2", dtype=torch.float32), tiny_model("gpt2", dtype=torch.float32)
    fewer, others = head_map_without(one, (0, 1)), head_map_without(other, (0, 1), (2, 0))
    found = compare((one, fewer), (other, others), [causal(some_tokens())])
    assert [(layer, head) for layer, row in enumerate(found.divergence) for head, value in enumerate(row)
            if value is None] == [(0, 1), (2, 0)]  # fmt: skip
    assert (found.heads, found.other_heads) == (8, 7) and found.kl > 0
    assert [layer.cosine for layer in found.layers[:3]] == pytest.approx([1.0] * 3)


def test_a_loss_that_is_no_number_is_an_error() -> None:
    one, other = tiny_model("gpt2", dtype=torch.float32), tiny_model("gpt2", dtype=torch.float32)
    other.network.transformer.ln_f.bias.data[0] = math.nan
    with pytest.raises(DivergedError, match="the losses are .* and nan"):
        compared(one, other, causal(some_tokens()))


def test_networks_that_apply_a_layer_again_are_sent_elsewhere() -> None:
    one, other = tiny_model("pnn", dtype=torch.float32), tiny_model("pnn", dtype=torch.float32)
    with pytest.raises(ModelError, match="'pnn' does not show .* analyze pnn MODEL --compare OTHER"):
        compared(one, other, some_batch("pnn"))


# The command.


def tokenizer_of(words: str) -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0} | {word: number for number, word in enumerate(sorted(set(words.split())), 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preservation")
    (path / "text.txt").write_text(TEXT, encoding="utf-8")
    for name, kind, seed, words in (
        ("model", "gpt2", 0, TEXT), ("other", "gpt2", 1, TEXT), ("words", "gpt2", 1, TEXT + " more"),
        ("llama", "llama", 0, TEXT), ("bert", "bert", 0, TEXT), ("pnn", "pnn", 0, TEXT),
    ):  # fmt: skip
        model = tiny_model(kind, dtype=torch.float32, seed=seed)
        model.network.save_pretrained(path / name)
        tokenizer_of(words).save_pretrained(path / name)
    shallow = AutoModelForCausalLM.from_pretrained(path / "model")
    shallow.transformer.h, shallow.config.n_layer = shallow.transformer.h[:2], 2
    shallow.save_pretrained(path / "shallow")
    tokenizer_of(TEXT).save_pretrained(path / "shallow")
    return path


def asked(folder: Path, model: str, other: str, *options: str) -> Result:
    return CliRunner().invoke(
        main, ["analyze", "preservation", str(folder / model), str(folder / other), "--data", str(folder / "text.txt"),
               "--seq-len", "16", "--windows", "4", *options],
    )  # fmt: skip


def test_the_command_prints_and_draws(folder: Path, tmp_path: Path) -> None:
    table = asked(folder, "model", "other", "--out", str(tmp_path / "p.png"))
    assert table.exit_code == 0, table.output
    assert "KL " in table.stdout and "layer 2" in table.stdout and "hidden cosine" in table.stdout
    assert "batches through both models: about" in table.stderr
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads(asked(folder, "model", "other", "--json").stdout)
    assert content["kl"] > 0 and len(content["layers"]) == 4 and content["predictions"] == 60
    assert set(content["difference"]) == {"mean", "low", "high"} and content["windows"] == 4


def test_a_model_beside_its_own_folder_is_the_same(folder: Path) -> None:
    for name in ("model", "llama"):
        content = json.loads(asked(folder, name, name, "--json").stdout)
        assert (content["kl"], content["agreement"]) == (0.0, 1.0)
        assert {value for row in content["divergence"] for value in row} == {0.0}


@pytest.mark.parametrize(
    ("model", "other", "options", "said"),
    [
        ("model", "words", (), "have different vocabularies. .* --tokenizer"),
        ("model", "shallow", (), "has 3 layers, .*shallow' 2: they are compared position by position"),
        ("model", "llama", (), "has 3 heads in a layer, .*llama' 5"),
        ("model", "bert", (), "learned causal_lm, .*bert' masked_lm"),
        ("model", "other", ("--seq-len", "1000"), "fewer than 4 windows of 1000"),
        ("model", "other", ("--seq-len", str(POSITIONS + 1)), f"has {POSITIONS} positions, fewer than --seq-len"),
        ("model", "missing", (), "missing' does not exist"),
        ("model", "other", ("--tokenizer", "nowhere"), "no tokenizer can be loaded from 'nowhere' .* with --tokenizer"),
        ("model", "other", ("--out", "/nowhere/p.png"), "'/nowhere' is no folder. Make it first"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    folder: Path, model: str, other: str, options: tuple[str, ...], said: str
) -> None:
    result = asked(folder, model, other, *options)
    assert result.exit_code == 2
    assert re.search(said, result.stderr), result.stderr
    assert result.stderr.count("error: ") == 1 and "Traceback" not in result.output


def test_another_vocabulary_is_refused_whatever_tokenizer_is_named(folder: Path) -> None:
    result = asked(folder, "words", "other", "--tokenizer", str(folder / "model"), "--json")
    assert result.exit_code == 0, result.output  # as many tokens: taken at the word that they are the same
    wider = AutoModelForCausalLM.from_pretrained(folder / "model")
    wider.resize_token_embeddings(VOCABULARY + 2)
    wider.save_pretrained(folder / "wider")
    result = asked(folder, "model", "wider", "--tokenizer", str(folder / "model"))
    assert result.exit_code == 2 and f"has {VOCABULARY} tokens" in result.stderr


@pytest.mark.slow
def test_both_formats_of_an_export_are_one_function(tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, "small", model__name="llama-nano")
    for form in ("compact", "dense"):
        export(sweep, 1, tmp_path / form, form)
    (tmp_path / "text.txt").write_text(TEXT * 4, encoding="utf-8")
    content = json.loads(asked(tmp_path, "compact", "dense", "--json").stdout)
    absent = [
        [grown < 0 for grown in row] for row in json.loads((tmp_path / "dense/raysweep.json").read_text())["head_map"]
    ]
    assert (content["kl"], content["agreement"]) == (0.0, 1.0)
    assert [[value is None for value in row] for row in content["divergence"]] == absent
    assert {value for row in content["divergence"] for value in row} == {None, 0.0}
    assert content["heads"] == content["other_heads"] == sum(row.count(False) for row in absent) < 32
