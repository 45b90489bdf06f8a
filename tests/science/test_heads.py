"""`raysweep analyze heads` against an independent implementation: eager maps, gates multiplied by hand, autograd."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.helpers import CONFIGS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from raysweep.cli import main

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 30
SCORES = {"taylor", "fisher", "entropy", "sink_mass", "sink_free_entropy", "magnitude", "magnitude_ov",
          "magnitude_qk", "activation"}  # fmt: skip
SEQ_LEN, WINDOWS = 20, 5


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder: the command draws into the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", params=["gpt2", "llama-gqa"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer that would add a special token, and a text."""
    path = tmp_path_factory.mktemp(request.param)
    (path / "text.txt").write_text(TEXT, encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(path / "model")
    config = CONFIGS[request.param]()
    config.vocab_size, config.max_position_embeddings = 320, 32
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    network.save_pretrained(path / "model")
    return path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the picture, which takes longer than the numbers."""
    monkeypatch.setattr("raysweep.reports.plots.heat_map.save_heat_maps", lambda *arguments: None)


def analyzed(folder: Path, *options: str, data: str = "text.txt", model: str = "model") -> Result:
    return CliRunner().invoke(
        main, ["analyze", "heads", str(folder / model), "--data", str(folder / data), "--seq-len", str(SEQ_LEN),
               "--windows", str(WINDOWS), *options],
    )  # fmt: skip


def content(folder: Path, *options: str) -> dict[str, Any]:
    result = analyzed(folder, "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class Oracle:
    """The same numbers computed without raysweep."""

    def __init__(self, folder: Path, masked: list[tuple[int, int]]) -> None:
        from transformers import AutoTokenizer

        self.network = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager").eval()
        ids = AutoTokenizer.from_pretrained(folder / "model")(TEXT, add_special_tokens=False)["input_ids"]
        self.windows = torch.tensor(ids[: SEQ_LEN * WINDOWS]).view(WINDOWS, SEQ_LEN)
        config = self.network.config
        self.is_gpt2 = config.model_type == "gpt2"
        blocks = self.network.transformer.h if self.is_gpt2 else self.network.model.layers
        self.projections = [block.attn.c_proj if self.is_gpt2 else block.self_attn.o_proj for block in blocks]
        self.heads = config.num_attention_heads
        self.gates = torch.ones(len(blocks), self.heads)
        for slot in masked:
            self.gates[slot] = 0.0
        self.gates.requires_grad_()
        self.outputs: dict[int, torch.Tensor] = {}
        for layer, projection in enumerate(self.projections):
            projection.register_forward_pre_hook(lambda _, inputs, layer=layer: self._gated(layer, inputs[0]))

    def _gated(self, layer: int, heads: torch.Tensor) -> tuple[torch.Tensor]:
        parts = heads.unflatten(-1, (self.heads, -1))
        self.outputs[layer] = parts.detach()
        return ((parts * self.gates[layer][:, None]).flatten(-2),)

    def loss(self, window: torch.Tensor) -> torch.Tensor:
        logits = self.network(window[None], output_attentions=False).logits[0]
        return -logits[:-1].log_softmax(-1)[torch.arange(SEQ_LEN - 1), window[1:]].mean()

    def gradients(self) -> np.ndarray:
        """Return (windows, layers, heads)."""
        return np.stack([torch.autograd.grad(self.loss(w), self.gates)[0].numpy() for w in self.windows])

    @torch.no_grad()
    def looks(self) -> dict[str, np.ndarray]:
        sums: dict[str, Any] = {name: 0.0 for name in ("entropy", "sink_mass", "sink_free_entropy", "activation")}
        for window in self.windows:
            maps = torch.cat(self.network(window[None], output_attentions=True).attentions).double()
            for t in range(1, SEQ_LEN):
                row = maps[:, :, t, : t + 1]
                sums["entropy"] += torch.special.entr(row).sum(-1) / math.log(t + 1)
                sums["sink_mass"] += row[..., 0]
                rest = row[..., 1:] / (1 - row[..., :1])
                sums["sink_free_entropy"] += torch.special.entr(rest).sum(-1) / math.log(t) if t > 1 else 0.0
            for layer, projection in enumerate(self.projections):
                weight = projection.weight if self.is_gpt2 else projection.weight.T
                parts = torch.einsum("bthi,hio->btho", self.outputs[layer], weight.unflatten(0, (self.heads, -1)))
                norms = torch.zeros(len(self.projections), self.heads)
                norms[layer] = parts.norm(dim=-1).sum((0, 1))
                sums["activation"] += norms
        counts = {"sink_free_entropy": SEQ_LEN - 2, "activation": SEQ_LEN}
        return {name: (s / (WINDOWS * counts.get(name, SEQ_LEN - 1))).numpy() for name, s in sums.items()}


@pytest.mark.parametrize("masked", [[], [(0, 1), (2, 2)]])
def test_everything_agrees_with_an_independent_implementation(folder: Path, masked: list[tuple[int, int]]) -> None:
    options = ["--mask", ",".join(f"{layer}.{head}" for layer, head in masked)] if masked else []
    found, oracle = content(folder, "--contribution", *options), Oracle(folder, masked)
    losses = [float(oracle.loss(window).detach()) for window in oracle.windows]
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert (found["predictions"], found["mask"]) == (WINDOWS * (SEQ_LEN - 1), [list(slot) for slot in masked])
    assert set(found["scores"]) == SCORES | {"contribution"}
    scores = {name: np.array(rows) for name, rows in found["scores"].items()}
    gradients = oracle.gradients()
    expected = {"taylor": np.abs(gradients).mean(0), "fisher": (gradients**2).mean(0), **oracle.looks()}
    for layer, head in np.ndindex(*oracle.gates.shape):
        with torch.no_grad():
            held = float(oracle.gates[layer, head])
            oracle.gates[layer, head] = 0.0
            costs = np.subtract([float(oracle.loss(window)) for window in oracle.windows], losses)
            oracle.gates[layer, head] = held
        assert scores["contribution"][layer, head] == pytest.approx(costs.mean(), abs=1e-5)
        assert costs.min() - 1e-5 <= found["contribution_interval"]["low"][layer][head]
        assert found["contribution_interval"]["high"][layer][head] <= costs.max() + 1e-5
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, atol=1e-5, rtol=1e-4, err_msg=name)


def test_people_get_a_table_and_a_picture(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = analyzed(folder)
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.stdout and "heat maps: heads.png" in result.stdout
    assert all(name in result.stdout for name in SCORES)
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "heads.png").unlink()
    analyzed(folder, "--json")
    assert not (tmp_path / "heads.png").exists()
    analyzed(folder, "--json", "--out", "other.png")
    assert (tmp_path / "other.png").exists()


def test_heads_may_be_silenced_one_option_at_a_time(folder: Path) -> None:
    together, one_by_one = content(folder, "--mask", "0.1,2.2"), content(folder, "--mask", "0.1", "--mask", "2.2")
    assert together["mask"] == [[0, 1], [2, 2]] and together == one_by_one


def test_one_window_has_no_interval(folder: Path) -> None:
    found = content(folder, "--contribution", "--windows", "1")
    assert "contribution_interval" not in found and found["agreement"]["taylor"]["global"] is not None


@pytest.mark.usefixtures("undrawn")
def test_passes_to_come_are_announced(folder: Path) -> None:
    lines = analyzed(folder, "--contribution").stderr.splitlines()
    heads = np.array(content(folder)["scores"]["taylor"]).size
    assert lines[0].startswith(f"heads left out one by one: 2 of {2 * heads} passes, about ")  # 5 windows, 4 at once
    assert 8 <= len(lines) <= 10


@pytest.mark.usefixtures("undrawn")
def test_silenced_heads_are_in_no_row_of_the_table(folder: Path) -> None:
    everything = ",".join(f"{layer}.{head}" for layer, row in enumerate(content(folder)["scores"]["taylor"])
                          for head in range(len(row)))  # fmt: skip
    without = everything.removesuffix(",2.0").replace(",2.0,", ",")
    rows = analyzed(folder, "--mask", without).stdout.split("taylor")[1].splitlines()[0]
    assert rows.count("2.0 (") == 2 and "2.1 (" not in rows
    assert analyzed(folder, "--mask", everything, "--contribution").exit_code == 0


def test_windows_too_short_for_a_sink_free_entropy_have_none(folder: Path) -> None:
    found = content(folder, "--seq-len", "2")["scores"]
    assert {value for row in found["sink_free_entropy"] for value in row} == {None}
    assert all(value is not None for row in found["entropy"] for value in row)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": "missing.txt"}, "missing.txt' cannot be read: No such file"),
        ({"data": "model"}, "cannot be read: Is a directory"),
        ({"data": "model/model.safetensors"}, "is not UTF-8 text"),
        ({"model": "missing"}, "missing' does not exist"),
        ({"more": ["--windows", "9999"]}, "fewer than 9999 windows of 20"),
        ({"more": ["--mask", "7.0"]}, "--mask 7.0: the model has 3 layers of"),
        ({"more": ["--mask", "0.99"]}, "--mask 0.99: the model has 3 layers of"),
        ({"more": ["--mask", "0,1"]}, "'0' is no head; write LAYER.HEAD"),
        ({"more": ["--seq-len", "33"]}, "has 32 positions, fewer than --seq-len 33"),
        ({"more": ["--out", "no/such/folder.png"]}, "'no/such' is no folder. Make it first"),
        ({"more": ["--tokenizer", "no/such"]}, "no tokenizer can be loaded from 'no/such'"),
    ],
)
def test_bad_input_is_one_clear_error(folder: Path, options: dict[str, Any], said: str) -> None:
    more = options.get("more", [])
    result = analyzed(folder, *more, **{key: value for key, value in options.items() if key != "more"})
    assert result.exit_code == 2, result.output
    assert said in result.stderr and "Traceback" not in result.output
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)


def test_a_size_to_train_has_no_heads_to_look_at(folder: Path) -> None:
    result = CliRunner().invoke(main, ["analyze", "heads", "gpt2-nano", "--data", str(folder / "text.txt")])
    assert result.exit_code == 2 and "to train from scratch" in result.stderr
