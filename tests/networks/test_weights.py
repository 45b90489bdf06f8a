"""A model folder that cannot be trained is refused before anything starts, in one line that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.helpers import tiny_model

from raysweep.errors import ModelError
from raysweep.job.spec import ModelSpec
from raysweep.networks.fit import check_model
from raysweep.networks.loading import build_skeleton

Weights = dict[str, torch.Tensor]


def saved(folder: Path, kind: str = "llama-gqa") -> Path:
    tiny_model(kind, dtype=torch.float32).network.save_pretrained(folder)
    return folder


def change(folder: Path, edit: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path, task: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        check_model(ModelSpec(name=str(folder), task=task), seq_len=16)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def accepted(folder: Path, task: str | None = None) -> None:
    assert check_model(ModelSpec(name=str(folder), task=task), seq_len=16)


def test_a_file_that_was_not_downloaded_or_was_cut_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], whole[:3], b"", b"\xff" * 64, b"PK" + whole):
        path.write_bytes(content)
        assert "model.safetensors' is damaged or was cut" in refusal(tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    assert "is a pointer of Git LFS. Get its content with `git lfs pull`" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda weights: weights.pop("lm_head.weight"), "lacks weights: lm_head.weight"),
        (lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"), "lacks weights: model.layers.1.mlp.up_proj"),
        (lambda weights: weights.update({"more": torch.zeros(3)}), "no place for: more"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(3)}), "model.norm.weight has the shape (3,)"),
        (lambda weights: weights["model.norm.weight"].__setitem__(1, torch.nan), "1 of the 27 numbers of 'model.norm"),
        (
            lambda weights: weights["lm_head.weight"].__setitem__((0, 0), torch.inf),
            "of 'lm_head.weight' are NaN or",
        ),
        (
            lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"].to(torch.int8)}),
            "'lm_head.weight' is stored as I8, as quantised weights are",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_network_are_refused(tmp_path: Path, edit: Any, said: str) -> None:
    change(saved(tmp_path), edit)
    assert said in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised (gptq)"),
        ({"quantization_config": {"load_in_8bit": True}}, "is quantised (unknown method)"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, "brings code of its own (auto_map"),
        ({"vocab_size": 60}, "has the shape (48, 27), but config.json asks for (60, 27)"),
        ({"num_hidden_layers": 1}, "no place for: model.layers.1"),
        ({"hidden_size": "wide"}, "is not a valid configuration of a 'llama'"),
        ({"num_attention_heads": 0}, "llama"),
        ({"model_type": "mamba"}, "is a 'mamba'"),
    ],
)
def test_a_configuration_that_cannot_be_built_or_trained_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    configure(saved(tmp_path), **changes)
    assert said in refusal(tmp_path)


def test_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    assert "holds no config.json" in refusal(tmp_path)
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "(pytorch_model.bin is a pickle, which is not read: it could run code)" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter of PEFT" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "holds an adapter of PEFT" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    for content in ("{", "[]", "[" * 100_000, "{}"):
        (tmp_path / "config.json").write_text(content)
        assert "Save the model again" in refusal(tmp_path)


def shards(folder: Path) -> Path:
    tiny_model("llama-gqa", dtype=torch.float32).network.save_pretrained(folder, max_shard_size="8KB")
    return folder / "model.safetensors.index.json"


def test_shards_are_all_there_and_hold_what_their_list_says(tmp_path: Path) -> None:
    index = shards(tmp_path)
    accepted(tmp_path)
    listed = json.loads(index.read_text())
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    content = files[1].read_bytes()
    files[1].unlink()
    assert f"lists '{files[1].name}', which is not there" in refusal(tmp_path)
    files[1].write_bytes(content[:-50])
    assert f"{files[1].name}' is damaged or was cut" in refusal(tmp_path)
    files[1].write_bytes(files[0].read_bytes())
    assert "which model.safetensors.index.json says it holds" in refusal(tmp_path)
    files[1].write_bytes(content)
    name = next(iter(listed["weight_map"]))
    index.write_text(json.dumps({"weight_map": listed["weight_map"] | {name: "../out.safetensors"}}))
    assert "lists '../out.safetensors', which is not there" in refusal(tmp_path)
    for broken in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        index.write_text(broken)
        assert "is no list of weights" in refusal(tmp_path)


def test_a_fifo_in_a_model_folder_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(saved(tmp_path) / "tokenizer.json")
    assert "tokenizer.json' is neither a regular file nor a folder" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("gone")
    assert "cannot be read (No such file" in refusal(tmp_path)


def test_tied_weights_and_those_of_the_trunk_alone_are_whole(tmp_path: Path) -> None:
    """As gpt2 of the hub is: no lm_head, which is the embedding, and names without the trunk's."""
    saved(tmp_path, "gpt2")
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    accepted(tmp_path)
    plain = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    plain["h.0.attn.masked_bias"] = torch.tensor(-torch.inf)
    save_file(plain, tmp_path / "model.safetensors", {"format": "pt"})
    accepted(tmp_path)


def test_half_precision_is_read_and_a_new_head_may_be_missing(tmp_path: Path) -> None:
    change(saved(tmp_path, "roberta"), lambda weights: weights.update({k: v.half() for k, v in weights.items()}))
    accepted(tmp_path)
    change(tmp_path, lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("lm_head.")])
    assert "lacks weights: lm_head." in refusal(tmp_path)
    accepted(tmp_path, "sequence_classification")


def test_how_attention_is_computed_is_ours_whatever_a_model_was_saved_with(tmp_path: Path) -> None:
    configure(saved(tmp_path), attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")
    accepted(tmp_path)
    skeleton = build_skeleton(ModelSpec(name=str(tmp_path)), seq_len=16)
    assert skeleton.network.config._attn_implementation == "sdpa"
