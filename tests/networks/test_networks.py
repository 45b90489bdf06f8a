"""From a name to a network: sizes, folders and their faults, fingerprints, and first weights from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.helpers import (
    CLASSES,
    IMAGES,
    KINDS,
    arguments_of,
    family_of,
    some_batch,
    some_tokens,
    task_name,
    tiny_model,
)
from transformers import AutoModelForCausalLM, GPT2Config

from raysweep.contracts import Facts
from raysweep.errors import ModelError
from raysweep.job import registry
from raysweep.job.registry import scratch_sizes
from raysweep.job.spec import DataSpec, ModelSpec
from raysweep.networks.configuration import task_of
from raysweep.networks.fit import check_fit, check_model
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import logits_of
from raysweep.trial.data.tokenizers import tokenizer_source


def saved(kind: str, folder: Path) -> PlasticModel:
    model = tiny_model(kind, dtype=torch.float32)
    model.network.save_pretrained(folder)
    return model


def build(name: str | Path, *, vocab_size: int = 48, seq_len: int = 16, seed: int = 0) -> tuple[Any, Any]:
    return build_network(ModelSpec(name=str(name)), Facts(vocab_size=vocab_size), seq_len=seq_len, seed=seed)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# From-scratch sizes.


def test_every_family_has_a_from_scratch_size_named_after_it() -> None:
    assert set(scratch_sizes().values()) == set(registry.available("models"))
    own = {"gpt_neox": "pythia", "pnn_vision": "pnn-vision"}  # pythia is the best known of its models
    assert all(size.startswith(f"{own.get(family, family)}-") for size, family in scratch_sizes().items())
    assert {"gpt2-nano", "gpt2-micro", "opt-nano", "llama-nano"} <= set(scratch_sizes())


@pytest.mark.parametrize("size", [size for size in scratch_sizes() if size.endswith("-nano")])
def test_first_weights_follow_from_the_seed_alone(size: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, family = build(size, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, _ = build(size, seed=3)
    other, _ = build(size, seed=4)
    assert type(family) is registry.load("models", scratch_sizes()[size])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("size", [s for s, of in scratch_sizes().items() if s.endswith("-nano") and of not in IMAGES])
def test_from_scratch_networks_have_the_asked_vocabulary_and_window_and_no_dropout(size: str) -> None:
    network, family = build(size, vocab_size=77, seq_len=24)
    assert network.get_input_embeddings().weight.shape[0] == 77
    assert len(family.sites(network)) == network.config.num_hidden_layers and family.sites(network)[0].num_heads == 8
    network.train()
    tokens = some_tokens(2, 24)
    assert torch.equal(network(input_ids=tokens).logits, network(input_ids=tokens).logits)
    assert network.config._attn_implementation == "sdpa"


def test_fingerprints_of_sizes_differ() -> None:
    prints = [check_model(ModelSpec(name=size), seq_len=32) for size in scratch_sizes()]
    assert len(set(prints)) == len(prints)
    assert prints == [check_model(ModelSpec(name=size), seq_len=32) for size in scratch_sizes()]


# Folders.


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_loaded_with_its_weights_and_without_dropout(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path)
    saved_names = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, **{name: 0.5 for name in saved_names if "drop" in name})
    facts = Facts(num_classes=CLASSES, image_shape=(2, 6, 4)) if kind in IMAGES else Facts(vocab_size=48)
    assert check_model(ModelSpec(name=str(tmp_path), task=task_name(kind)), seq_len=16)
    network, family = build_network(ModelSpec(name=str(tmp_path), task=task_name(kind)), facts, seq_len=16, seed=0)
    assert type(family) is type(family_of(kind))
    network.train()
    batch = some_batch(kind)
    with torch.no_grad():
        assert torch.equal(network(**arguments_of(network, batch)).logits, logits_of(model, batch))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_fingerprint_of_a_folder_covers_weights_and_configuration(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    spec = ModelSpec(name=str(tmp_path))
    first = check_model(spec, seq_len=32)
    assert check_model(spec, seq_len=32) == first
    edit_config(tmp_path, n_head=5)  # the same weights, another function
    assert check_model(spec, seq_len=32) != first
    edit_config(tmp_path, n_head=3)
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.ln_f.bias"][0] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert check_model(spec, seq_len=32) != first


def test_a_folder_copied_elsewhere_keeps_its_fingerprint(tmp_path: Path) -> None:
    saved("opt", tmp_path / "here")
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "here").iterdir():
        (tmp_path / "there" / path.name).write_bytes(path.read_bytes())
    assert check_model(ModelSpec(name=str(tmp_path / "here")), seq_len=32) == check_model(
        ModelSpec(name=str(tmp_path / "there")), seq_len=32
    )


def test_a_name_that_is_nothing_names_the_nearest_size() -> None:
    with pytest.raises(ModelError, match="Did you mean 'gpt2-nano'"):
        check_model(ModelSpec(name="gpt2-nanoo"), seq_len=32)
    with pytest.raises(ModelError, match="neither a folder here nor a model"):
        check_model(ModelSpec(name="nobody/nothing"), seq_len=32)


def test_folders_without_what_it_takes_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    spec = ModelSpec(name=str(tmp_path))
    with pytest.raises(ModelError, match="holds no config.json"):
        check_model(spec, seq_len=32)
    saved("gpt2", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="holds no weights"):
        check_model(spec, seq_len=32)
    edit_config(tmp_path, model_type="mamba", architectures=["MambaForCausalLM"])
    with pytest.raises(ModelError, match="is a 'mamba'.*Known: bert, gpt2, gpt_neox, llama"):
        check_model(spec, seq_len=32)


def test_missing_weights_are_never_filled_at_random(tmp_path: Path) -> None:
    saved("llama-gqa", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights: model\.layers\.1\.self_attn\.k_proj\.weight"):
        build(tmp_path)


def test_weights_of_another_shape_or_damaged_ones_are_a_fault_of_the_model(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    edit_config(tmp_path, vocab_size=60)
    with pytest.raises(ModelError, match="cannot be loaded"):
        build(tmp_path)
    edit_config(tmp_path, vocab_size=48)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        build(tmp_path)


def test_a_model_must_fit_the_tokenizer_and_the_window(tmp_path: Path) -> None:
    saved("opt", tmp_path)
    with pytest.raises(ModelError, match="knows 48 tokens, but the tokenizer has 49"):
        build(tmp_path, vocab_size=49)
    with pytest.raises(ModelError, match="has 32 positions, fewer than data.seq_len = 33"):
        build(tmp_path, seq_len=33)
    build(tmp_path, vocab_size=40, seq_len=32)


def test_an_encoder_that_counts_positions_from_its_padding_has_fewer_for_tokens(tmp_path: Path) -> None:
    saved("roberta", tmp_path)  # a table of 34 rows
    build(tmp_path, seq_len=32)
    with pytest.raises(ModelError, match="has 32 positions, fewer than data.seq_len = 33"):
        check_model(ModelSpec(name=str(tmp_path)), seq_len=33)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": 4}))
    with pytest.raises(ModelError, match="has 29 positions, fewer than data.seq_len = 30"):
        check_model(ModelSpec(name=str(tmp_path)), seq_len=30)


def test_a_folder_that_is_not_there_is_no_name_on_the_hub() -> None:
    with pytest.raises(ModelError, match="model folder './nope' does not exist"):
        check_model(ModelSpec(name="./nope"), seq_len=8)


def test_what_is_checked_here_is_not_said_by_transformers_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved("bert", tmp_path)
    capfd.readouterr()
    with pytest.raises(ModelError, match="lacks weights: bert.pooler.dense"):
        classifier_of(tmp_path, 3, seed=0)
    said = capfd.readouterr()
    assert not said.out and not said.err


# Heads of classifiers.


def classifier_of(folder: Path, num_classes: int, seed: int) -> Any:
    spec = ModelSpec(name=str(folder), task="sequence_classification")
    return build_network(spec, Facts(vocab_size=48, num_classes=num_classes), seq_len=16, seed=seed)[0]


def test_a_pretrained_trunk_gets_a_new_classifier_that_follows_from_the_seed(tmp_path: Path) -> None:
    trunk = saved("bert", tmp_path).network.bert
    with pytest.raises(ModelError, match="lacks weights: bert.pooler.dense"):  # a trunk is never filled at random
        classifier_of(tmp_path, 3, seed=0)
    first, _ = (saved("bert-classes", tmp_path).network, trunk)
    again, other = classifier_of(tmp_path, 3, seed=1), classifier_of(tmp_path, 3, seed=2)
    same = classifier_of(tmp_path, 3, seed=1)
    assert again.classifier.weight.shape == (3, 15)
    assert torch.equal(again.classifier.weight, same.classifier.weight)
    assert not torch.equal(again.classifier.weight, other.classifier.weight)
    assert torch.equal(again.bert.pooler.dense.weight, first.bert.pooler.dense.weight)


def test_a_classifier_of_as_many_classes_keeps_its_head(tmp_path: Path) -> None:
    model = saved("bert-classes", tmp_path)
    assert torch.equal(classifier_of(tmp_path, CLASSES, seed=3).classifier.weight, model.network.classifier.weight)


def test_images_of_another_shape_are_refused() -> None:
    spec = ModelSpec(name="vit-nano")
    check_fit(spec, Facts(num_classes=10, image_shape=(1, 8, 8)), seq_len=128)
    with pytest.raises(ModelError, match=r"'vit-nano' takes images of 1 x 8 x 8 .* but the data's have 3 x 8 x 8"):
        check_fit(spec, Facts(num_classes=10, image_shape=(3, 8, 8)), seq_len=128)


def test_a_model_learns_what_its_family_can_and_the_first_unless_told() -> None:
    assert task_of(ModelSpec(name="bert-nano")) == "masked_lm"
    assert task_of(ModelSpec(name="bert-nano", task="sequence_classification")) == "sequence_classification"
    with pytest.raises(ModelError, match="model.task = 'masked_lm': model 'gpt2-nano' cannot learn that"):
        task_of(ModelSpec(name="gpt2-nano", task="masked_lm"))


# Tokenizers.


def test_where_the_tokenizer_comes_from() -> None:
    plain, own = DataSpec(), DataSpec(tokenizer="mine")
    assert tokenizer_source(ModelSpec(name="gpt2-micro"), plain) == (None, 2048)
    assert tokenizer_source(ModelSpec(name="opt-nano"), plain) == (None, 1024)
    assert tokenizer_source(ModelSpec(name="gpt2-micro"), own) == ("mine", None)
    assert tokenizer_source(ModelSpec(name="distilgpt2"), plain) == ("distilgpt2", None)


def test_a_window_longer_than_the_models_positions_is_refused_before_anything_starts(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16)).save_pretrained(
        tmp_path
    )
    check_model(ModelSpec(name=str(tmp_path)), seq_len=16)
    with pytest.raises(ModelError, match="16 positions, fewer than data.seq_len = 17"):
        check_model(ModelSpec(name=str(tmp_path)), seq_len=17)
