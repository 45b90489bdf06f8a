"""The curve of per-token gates: penalties move the share of open heads, the network is unchanged, costs compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.finished import finished_sweep
from support.helpers import cpu, head_map_without, some_tokens, tiny_model, weights_of

from raysweep.cli.analyze.dynamic import dynamic
from raysweep.errors import DataError, ModelError
from raysweep.job.spec import DataSpec
from raysweep.networks.plasticity.accounting import flops_per_token
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.science.dynamic_heads import RouterCurve, RouterOptions, dynamic_heads, router_curve
from raysweep.trial.exports.write import export

DATA = DataSpec(name="tokens", seq_len=12, probe_windows=4)


def windows(count: int, seed: int) -> np.ndarray:
    return some_tokens(count, 12, seed).numpy()


def curve_of(model: PlasticModel, head_map: HeadMap, **question: Any) -> RouterCurve:
    asked = RouterOptions(**{"steps": 30, "batch_size": 4, **question})
    return router_curve(model, head_map, windows(16, 1), windows(6, 2), DATA, asked, cpu(), name="tiny", sha256="x")


@pytest.fixture(scope="module")
def answer() -> RouterCurve:
    model = tiny_model("gpt2", dtype=torch.float32)
    return curve_of(model, HeadMap.full(*model.shape), penalties=(0.0, 100.0), lr=0.1)


def test_the_penalty_moves_the_share_of_open_heads(answer: RouterCurve) -> None:
    free, dear = answer.points
    assert free.open_share > 0.5 and dear.open_share < 0.1
    assert dear.flops_per_token < free.flops_per_token


def test_a_point_stands_beside_pruning_that_costs_no_more(answer: RouterCurve) -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    for point in answer.points:
        if point.static is not None:
            assert point.static.flops_per_token <= point.flops_per_token
            one_more = (
                point.static.flops_per_token
                + flops_per_token(model, HeadMap.full(3, 3), 12)
                - flops_per_token(model, head_map_without(model, (0, 0)), 12)
            )
            assert one_more > point.flops_per_token or point.static.heads == 9
    assert answer.full.heads == 9


def test_the_static_network_is_pruned_by_taylor_scores() -> None:
    """A head that writes nothing is pruned first, and the loss stays that of the full network."""
    model = tiny_model("gpt2", dtype=torch.float64)
    model.network.transformer.h[1].attn.c_proj.weight.data[5:10] = 0
    found = curve_of(model, HeadMap.full(*model.shape), penalties=(8.0,), lr=0.02)
    (point,) = found.points
    assert point.static is not None and point.static.heads < 9
    one = flops_per_token(model, head_map_without(model, (1, 1)), 12)
    if point.static.flops_per_token == one:
        assert point.static.loss == pytest.approx(found.full.loss, abs=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama-gqa"])
def test_the_network_is_left_as_it_was(kind: str) -> None:
    model = tiny_model(kind, dtype=torch.float32)
    head_map = head_map_without(model, (0, 1))
    model.set_gates(head_map)
    model.train()
    before, gates = weights_of(model), [gate.values for gate in model.gates]
    curve_of(model, head_map, steps=3, penalties=(1.0,))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(model).items())
    assert all(one is other for one, other in zip(gates, [gate.values for gate in model.gates], strict=True))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(not site.attention._forward_pre_hooks for site in model.sites)


def test_the_same_question_has_the_same_answer(answer: RouterCurve) -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    again = curve_of(model, HeadMap.full(*model.shape), penalties=(0.0, 100.0), lr=0.1)
    assert again.points == answer.points and again.full == answer.full
    other = curve_of(model, HeadMap.full(*model.shape), penalties=(0.0,), lr=0.1, seed=1)
    assert other.points[0].loss != answer.points[0].loss


def test_times_are_measured(answer: RouterCurve) -> None:
    assert set(answer.seconds_per_token) == {"plain", "gated"} and min(answer.seconds_per_token.values()) > 0


# Trained models.


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dynamic")
    sweep = finished_sweep(folder, "small", model__name="llama-nano")
    for form in ("compact", "dense"):
        export(sweep, 1, folder / form, form)
    return {form: folder / form for form in ("compact", "dense")}


SMALL = DataSpec(name="python-docs", seq_len=16, eval_tokens=256, probe_windows=4)


@pytest.mark.slow
def test_both_formats_of_an_export_and_a_plain_folder_can_be_asked(exported: dict[str, Path], tmp_path: Path) -> None:
    question = RouterOptions(penalties=(1.0,), steps=2, batch_size=2)
    answers = [dynamic_heads(str(exported[form]), SMALL, question, cpu()) for form in ("compact", "dense")]
    assert answers[0].points == answers[1].points and answers[0].full.heads < 32
    content = json.loads((exported["dense"] / "raysweep.json").read_text())
    assert answers[0].full.heads == content["metrics"]["active_heads"]
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in exported["dense"].iterdir():
        if file.name != "raysweep.json":
            (plain / file.name).write_bytes(file.read_bytes())
    asked = dynamic_heads(str(plain), SMALL, question, cpu())
    assert asked.full.heads == 32 and asked.full.loss == pytest.approx(answers[0].full.loss, abs=1e-6)


def test_what_cannot_be_asked_is_refused(exported: dict[str, Path]) -> None:
    question = RouterOptions(steps=1)
    with pytest.raises(ModelError, match="'gpt2-nano' is a size to train from scratch"):
        dynamic_heads("gpt2-nano", SMALL, question, cpu())
    with pytest.raises(ModelError, match="has 16 positions, fewer than"):
        dynamic_heads(str(exported["compact"]), DataSpec(seq_len=64), question, cpu())
    with pytest.raises(DataError, match="too short: .* a batch takes 100000"):
        dynamic_heads(str(exported["compact"]), SMALL, RouterOptions(batch_size=100_000), cpu())


def test_the_command_prints_and_draws(exported: dict[str, Path], tmp_path: Path) -> None:
    words = [str(exported["compact"]), "--data", "python-docs", "--penalty", "1", "--steps", "2", "--seq-len", "16",
             "--eval-tokens", "64", "--batch-size", "2"]  # fmt: skip
    done = CliRunner().invoke(dynamic, [*words, "--json", "--plot", str(tmp_path / "curve.png")])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert len(content["points"]) == 1 and content["question"]["steps"] == 2
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    table = CliRunner().invoke(dynamic, words)
    assert table.exit_code == 0 and "nothing is faster" in table.stdout and "static loss" in table.stdout


def test_the_command_refuses_before_it_works(exported: dict[str, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(dynamic, [str(exported["compact"]), "--data", "python-docs", "--plot", "/nowhere/a.png"])
    assert "its folder does not exist" in str(done.exception)
    done = CliRunner().invoke(dynamic, [str(exported["compact"]), "--data", "python-docs", "--eval-tokens", "8"])
    assert "less than one window" in str(done.exception)
