"""Changed gates keep their means; the verdict on their pattern follows what a planted gate depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.subjects import WIDTH, tiny_pnn, tiny_subject

from raysweep.errors import ModelError, NotApplicableError
from raysweep.job.spec import DataSpec
from raysweep.science.pnn.analyses.gate_specificity import Analysis
from raysweep.science.pnn.gate_changes import dropped, inverted, noisy, permuted, swapped, token_mean
from raysweep.science.pnn.subject import PnnSubject, load_subject


def some_gates(batch: int = 3, tokens: int = 7, width: int = 500) -> torch.Tensor:
    return torch.rand(batch, tokens, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_dropout_closes_its_share_and_keeps_the_mean(rate: float) -> None:
    gates = some_gates()
    found = dropped(gates, rate, generator())
    assert float((found == 0).double().mean()) == pytest.approx(rate, abs=0.02)
    assert float(found.mean()) == pytest.approx(float(gates.mean()), rel=0.05)
    kept = found > 0
    torch.testing.assert_close(found[kept], gates[kept] / (1 - rate))


def test_noise_keeps_every_gates_own_mean_and_stays_within_bounds() -> None:
    gates = torch.tensor([0.0, 1e-6, 0.1, 0.7, 1.0], dtype=torch.float64).expand(20_000, 1, 5)
    found = noisy(gates, 0.5, generator())
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert found.mean((0, 1)).tolist() == pytest.approx([0.0, 0.0, 0.1, 0.7, 1.0], abs=0.01)
    assert float(found[..., 3].std()) == pytest.approx(0.5 * np.sqrt(0.7 * 0.3), rel=0.02)
    assert torch.equal(found[..., [0, 4]], gates[..., [0, 4]])  # saturated gates have no noise


def test_permuting_and_inverting_keep_each_tokens_gates() -> None:
    gates = some_gates(width=15)
    for found in (permuted(gates, generator()), inverted(gates)):
        torch.testing.assert_close(found.sort(-1).values, gates.sort(-1).values)
    for before, after in zip(gates.reshape(-1, 15), inverted(gates).reshape(-1, 15), strict=True):
        assert stats.spearmanr(before, after).statistic == pytest.approx(-1)
    orders = {tuple(row.argsort().tolist()) for row in permuted(gates[:1, :1].expand(1, 50, 15), generator())[0]}
    assert len(orders) == 50  # each token's own
    assert torch.equal(token_mean(gates)[1, 2], gates[1, 2].mean().expand(15))


def test_a_swapped_token_has_another_ones_gates_and_padding_keeps_its_own() -> None:
    gates = some_gates(batch=3, tokens=5, width=4)
    real = torch.ones(3, 5, dtype=torch.bool)
    real[1, 3:] = False
    found = swapped(gates, real, generator())
    assert torch.equal(found[~real], gates[~real])
    assert not (found[real] == gates[real]).all(-1).any()
    torch.testing.assert_close(found[real].sort(0).values, gates[real].sort(0).values)


def planted_gate(kind: str) -> Any:
    """Return a network whose gates depend on nothing, on the dimension alone, or on the token alone."""
    network = tiny_pnn()
    gate = network.pnn.refiner.gate
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        gate.query.weight.zero_()
        gate.key.weight.zero_()
        gate.key.bias.fill_(1.0)
        gate.raw_temperature.fill_(-1.0)
        network.decoder.weight.mul_(10)  # sure of what it predicts
        if kind == "nothing":
            gate.query.bias.zero_()
        if kind == "dimension":
            gate.query.bias.copy_(torch.randn(WIDTH, generator=drawn))
        if kind == "token":
            gate.query.bias.zero_()
            gate.query.weight.copy_(torch.randn(WIDTH, generator=drawn).expand(WIDTH, WIDTH))
    return network


def subject_that_is_right(network: Any) -> PnnSubject:
    """Return a subject whose labels are the predictions of the network, so that any change of its states costs."""
    subject = tiny_subject(network, sequences=24)
    predicted, at, batches = subject.predictions().predicted[-1], 0, []
    for batch in subject.batches:
        assert batch.labelled is not None
        labels = batch.labels.clone()
        labels.view(-1)[batch.labelled] = torch.from_numpy(predicted[at : at + len(batch.labelled)])
        at += len(batch.labelled)
        batches.append(dataclasses.replace(batch, labels=labels))
    return dataclasses.replace(subject, batches=batches)


NO_DIMENSION, DIMENSION = "not found to matter which dimensions", "It matters which dimensions are open"
NO_TOKEN, TOKEN = "not found to matter for which token", "It matters for which token they are"


@pytest.mark.parametrize(
    ("kind", "of_dimension", "of_token"),
    [("nothing", NO_DIMENSION, NO_TOKEN), ("dimension", DIMENSION, NO_TOKEN), ("token", NO_DIMENSION, TOKEN)],
)
def test_the_verdict_follows_from_what_the_gate_depends_on(kind: str, of_dimension: str, of_token: str) -> None:
    finding = Analysis()(subject_that_is_right(planted_gate(kind)))
    assert of_dimension in finding.verdict and of_token in finding.verdict
    effects = {one.name: abs(one.effect) for one in finding.comparisons}
    of_dimensions, of_tokens = ["permuted", "token_mean", "inverted"], ["swapped", "dimension_mean"]
    untouched = {"nothing": of_dimensions + of_tokens, "dimension": of_tokens, "token": of_dimensions}
    for condition in untouched[kind]:
        assert effects[f"{condition}, every step"] == pytest.approx(0, abs=1e-9)


def test_networks_are_compared_on_the_same_masked_tokens() -> None:
    network = tiny_pnn()
    subject = subject_that_is_right(network)
    others = {"twice": network, "other, seed": tiny_pnn(seed=5, gate="none")}
    finding = Analysis()(dataclasses.replace(subject, compared=others))
    compared = {one.name: one for one in finding.comparisons if one.name.endswith("this network")}
    assert compared["twice - this network"].effect == 0 and "twice is not found to differ" in finding.verdict
    assert "other, seed is worse by" in finding.verdict
    intact = subject.predictions().loss[-1]
    other = dataclasses.replace(subject, network=others["other, seed"]).predictions().loss[-1]
    assert compared["other, seed - this network"].effect == pytest.approx((other - intact).mean())
    assert finding.figures["compared"]["other, seed"]["gate"] == "none"


def test_a_network_to_compare_with_takes_the_same_text(tmp_path: Path) -> None:
    tiny_pnn().save_pretrained(tmp_path / "long")
    tiny_pnn(max_position_embeddings=9).save_pretrained(tmp_path / "short")
    with pytest.raises(ModelError, match=r"short' has 9 positions, fewer than --seq-len 14"):
        load_subject(str(tmp_path / "long"), DataSpec(seq_len=14), compared=[str(tmp_path / "short")])


def test_many_permutations_are_drawn_and_a_second_run_draws_the_same() -> None:
    subject = tiny_subject(sequences=6)
    finding = Analysis()(subject)
    assert finding.figures["permutations"]["every step"]["count"] == 20
    spread = finding.figures["permutations"]["every step"]
    assert spread["lowest"] < spread["highest"] and 1 / 21 <= spread["p_value"] <= 1
    assert finding == Analysis()(subject)


def test_without_such_a_gate_there_is_nothing_to_spoil() -> None:
    with pytest.raises(NotApplicableError, match="'constant'"):
        Analysis()(tiny_subject(tiny_pnn(gate="constant")))
