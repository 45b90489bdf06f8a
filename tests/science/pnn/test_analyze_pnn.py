"""`raysweep analyze pnn` as users run it: folders, aliases, files, tables, and every error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from support.subjects import tiny_pnn
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from raysweep.cli import main
from raysweep.job import registry
from raysweep.trial.exports.manifest import Manifest

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 40
SPECIAL = {"pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
SIZE = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `model`, `stack` of layers and `ungated`, and a text in two splits."""
    path = tmp_path_factory.mktemp("pnn")
    texts = {"text/train": TEXT, "text/valid": TEXT[7:1700], "short/train": TEXT, "short/valid": TEXT[:90],
             "unknown/train": "\u2603 " * 999, "unknown/valid": "\u2604 " * 999}  # fmt: skip
    for split, text in texts.items():
        file = path / f"{split}.txt"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text, encoding="utf-8")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=list(SPECIAL.values()))
    tokenizer.train_from_iterator([TEXT], trainer)
    kinds: dict[str, dict[str, Any]] = {"model": {}, "stack": {"trunk": "layers"}, "ungated": {"gate": "none"}}
    for name, options in kinds.items():
        network = tiny_pnn(vocab_size=SIZE, max_position_embeddings=16, **options).float()
        network.save_pretrained(path / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(path / name)
    return path


def analyzed(folder: Path, *options: str, model: str = "model", data: str | None = "text") -> Result:
    text = [] if data is None else ["--data", str(folder / data)]
    return CliRunner().invoke(main, ["analyze", "pnn", str(folder / model), *text, *options])


def content(folder: Path, *options: str, **how: Any) -> dict[str, Any]:
    result = analyzed(folder, "--json", *options, **how)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_all_analyses_run_each_with_json_and_a_picture(folder: Path, tmp_path: Path) -> None:
    result = analyzed(folder, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    names = registry.available("analyses")
    for name in names:
        found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert found["experiment"] == name
        if name == "gate_entropy":  # a network that is never right has nothing to tell apart
            assert "predictions" in found["not_applicable"]
            continue
        assert found["verdict"] in result.stdout
        assert all(one["q_value"] >= one["p_value"] for one in found["comparisons"])
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "analyses, " in result.stderr and f"{len(names)}/{len(names)} trajectory" in result.stderr


def test_the_same_question_has_the_same_answer_and_an_alias_asks_it(folder: Path) -> None:
    found = content(folder, "--experiment", "meg", "--experiment", "step_trace")
    assert [one["experiment"] for one in found["findings"]] == ["trajectory", "trace"]
    assert content(folder, "--experiment", "trajectory", "--experiment", "trace") == found
    other = content(folder, "--experiment", "meg", "--seed", "1")["findings"][0]["comparisons"]
    assert other != found["findings"][0]["comparisons"]


def test_with_json_no_file_is_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content(folder, "--experiment", "trace")
    assert not list(tmp_path.iterdir())
    assert analyzed(folder, "--experiment", "trace").exit_code == 0
    assert (tmp_path / "pnn-analysis" / "trace.png").exists()


def test_an_export_brings_its_text_with_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    Manifest(
        format="dense", family="pnn", task="masked_lm", model_class="PnnForMaskedLM", base_model="pnn-nano", sweep="s",
        trial=1, plan_key="key", cycles=0, head_map=[[0, 0, 0]], kv_index=[None], metrics={},
        data={"name": str(folder / "text"), "seq_len": 16, "sha256": "text"}, versions={},
    ).write(tmp_path / "model")  # fmt: skip
    exported = content(tmp_path, "--experiment", "trace", data=None)
    assert exported["findings"] == content(folder, "--experiment", "trace")["findings"]


def test_other_models_are_compared(folder: Path) -> None:
    stack = str(folder / "stack")
    [found] = content(folder, "--experiment", "convergence", "--compare", stack)["findings"]
    assert any(one["name"].endswith(f"minus {stack}") for one in found["comparisons"])


@pytest.mark.slow
def test_what_does_not_apply_is_said_among_all_and_refused_when_asked_for(folder: Path) -> None:
    result = analyzed(folder, "--experiment", "gates", model="ungated")
    assert result.exit_code == 2 and "--experiment gates: " in result.stderr and "its gate 'none'" in result.stderr
    found = content(folder, model="ungated")["findings"]
    missing = {one["experiment"] for one in found if "not_applicable" in one}
    assert "gates" in missing and "trace" not in missing and len(found) == len(registry.available("analyses"))


def copied(folder: Path, tmp_path: Path, change: Any) -> Path:
    shutil.copytree(folder / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    return tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("pnn.refiner.gate.query.bias"), "missing_keys: pnn.refiner.gate.query.bias"),
        (lambda weights: weights.update(more=weights["decoder.bias"].clone()), "unexpected_keys: more"),
        (
            lambda weights: weights.update({"decoder.bias": weights["decoder.bias"][:-1].clone()}),
            "mismatched_keys: ('decoder.bias'",
        ),
    ],
)
def test_a_checkpoint_with_other_keys_is_refused(folder: Path, tmp_path: Path, change: Any, said: str) -> None:
    result = analyzed(copied(folder, tmp_path, change), "--data", str(folder / "text"), data=None)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert isinstance(result.exception, SystemExit)


def test_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=SIZE)
    BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    result = analyzed(tmp_path, "--data", str(folder / "text"), data=None)
    assert result.exit_code == 2 and "is a BertForMaskedLM; give a PnnForMaskedLM" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"more": ["--experiment", "optogenetcs"]}, "no 'optogenetcs'. Did you mean 'optogenetics'?"),
        ({"model": "missing"}, "is no folder with a config.json"),
        ({"data": None}, "does not say what it was trained on. Name a text with --data"),
        ({"data": "missing.txt"}, "no such file or folder"),
        ({"data": "short"}, "held-out sequences"),
        ({"data": "unknown"}, "special or unknown tokens alone"),
        ({"more": ["--seq-len", "17"]}, "has 16 positions, fewer than --seq-len 17"),
        ({"more": ["--compare", "nowhere"]}, "model 'nowhere' is no folder"),
        ({"more": ["--out", "/dev/null/folder"]}, "cannot be made"),
    ],
)
def test_bad_input_is_one_clear_error(folder: Path, options: dict[str, Any], said: str) -> None:
    how = {key: value for key, value in options.items() if key != "more"}
    result = analyzed(folder, *options.get("more", []), **how)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and isinstance(result.exception, SystemExit)
