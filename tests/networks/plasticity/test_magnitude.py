"""The three sizes of a head: explicit products, and what they are blind to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import KINDS, at, family_of, head_places, some_batch, some_tokens, tiny_model
from transformers import AutoModelForCausalLM, OPTConfig

from raysweep.networks.plasticity.magnitude import magnitudes
from raysweep.networks.plasticity.model import PlasticModel

SMALL_OPT = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 1, "ffn_dim": 8, "vocab_size": 20}


def matrix(kind: str, model: PlasticModel, layer: int, head: int, role: str) -> torch.Tensor:
    """Return (width, head_dim)."""
    place = head_places(kind, model, layer, head)[role][0]
    return at(model, place).movedim(place[1], -1)


def gain(model: PlasticModel, layer: int) -> torch.Tensor:
    """Return a copy of the gain in front of a layer's heads, ones where there is no norm, (width,)."""
    site = model.sites[layer]
    name, dim, _ = site.query[0]
    ones = torch.ones(model.network.get_parameter(name).shape[1 - dim], dtype=torch.float64)
    return ones if site.gain is None else model.network.get_parameter(site.gain).detach().clone()


def test_only_networks_that_normalise_in_front_of_their_heads_have_a_gain_there() -> None:
    without = {kind for kind in KINDS if tiny_model(kind).sites[0].gain is None}
    behind = AutoModelForCausalLM.from_config(OPTConfig(**SMALL_OPT, do_layer_norm_before=False))  # as OPT-350M
    assert {site.gain for site in family_of("opt").sites(behind)} == {None}
    assert without == {"bert", "bert-classes", "roberta", "pnn", "pnn-blocks", "pnn-layers", "pnn_vision"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_are_norms_of_explicit_matrices(kind: str) -> None:
    model = tiny_model(kind)
    found = magnitudes(model)
    for layer, head in np.ndindex(*model.shape):
        parts = [matrix(kind, model, layer, head, role) for role in ("query", "key", "value", "output")]
        gained = [part * gain(model, layer)[:, None] for part in parts[:3]]
        assert found["raw"][layer, head] == pytest.approx(float(torch.cat(parts, dim=1).norm()), rel=1e-9)
        assert found["ov"][layer, head] == pytest.approx(float((gained[2] @ parts[3].T).norm()), rel=1e-9)
        assert found["qk"][layer, head] == pytest.approx(float((gained[0] @ gained[1].T).norm()), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_ov_and_qk_are_blind_to_a_gain_that_moves_into_the_weights(kind: str) -> None:
    model = tiny_model(kind)
    batch = some_batch(kind)
    before, outputs = magnitudes(model), model(batch.inputs)
    for layer, site in enumerate(model.sites):
        moved = gain(model, layer)
        for name, dim in {place[:2] for place in (*site.query, *site.key, *site.value)}:
            weights = model.network.get_parameter(name).data
            if weights.dim() == 2:
                weights *= moved if dim == 0 else moved[:, None]
        if site.gain is not None:
            model.network.get_parameter(site.gain).data.fill_(1.0)
            offset = site.gain.replace("weight", "bias")
            if offset in dict(model.network.named_parameters()):
                model.network.get_parameter(offset).data /= moved
    after = magnitudes(model)
    torch.testing.assert_close(model(batch.inputs), outputs)
    np.testing.assert_allclose(after["ov"], before["ov"], rtol=1e-9)
    np.testing.assert_allclose(after["qk"], before["qk"], rtol=1e-9)


def test_ov_is_blind_to_a_rewritten_head_and_raw_is_not() -> None:
    model = tiny_model("gpt2")
    before, logits = magnitudes(model), model(some_tokens())
    places = head_places("gpt2", model, 1, 2)
    turn = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for place in places["value"]:
        at(model, place).copy_(at(model, place) @ turn)
    (place,) = places["output"]
    at(model, place).copy_(torch.linalg.solve(turn, at(model, place)))
    after = magnitudes(model)
    torch.testing.assert_close(model(some_tokens()), logits)
    np.testing.assert_allclose(after["ov"], before["ov"], rtol=1e-9)
    assert not np.isclose(after["raw"][1, 2], before["raw"][1, 2], rtol=1e-2)


def test_qk_is_blind_to_a_rewritten_head() -> None:
    model = tiny_model("gpt2")
    before = magnitudes(model)
    places = head_places("gpt2", model, 0, 1)
    turn = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for role, factor in (("query", turn), ("key", torch.linalg.inv(turn).T)):
        for place in places[role]:
            at(model, place).copy_(at(model, place) @ factor)
    after = magnitudes(model)
    np.testing.assert_allclose(after["qk"], before["qk"], rtol=1e-9)
    assert not np.isclose(after["raw"][0, 1], before["raw"][0, 1], rtol=1e-2)
