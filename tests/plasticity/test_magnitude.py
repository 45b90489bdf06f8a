"""The three sizes of a head: explicit products, and what they are blind to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import KINDS, at, head_places, some_tokens, tiny_model

from raysweep.plasticity.magnitude import magnitudes
from raysweep.plasticity.model import PlasticModel


def matrix(kind: str, model: PlasticModel, layer: int, head: int, role: str) -> torch.Tensor:
    """Return (width, head_dim)."""
    place = head_places(kind, model, layer, head)[role][0]
    return at(model, place).movedim(place[1], -1)


@pytest.mark.parametrize("kind", KINDS)
def test_ov_and_qk_are_the_norms_of_explicit_products(kind: str) -> None:
    model = tiny_model(kind)
    found = magnitudes(model)
    for layer, head in np.ndindex(*model.shape):
        query, key, value, output = (matrix(kind, model, layer, head, r) for r in ("query", "key", "value", "output"))
        assert found["ov"][layer, head] == pytest.approx(float((value @ output.T).norm()), rel=1e-9)
        assert found["qk"][layer, head] == pytest.approx(float((query @ key.T).norm()), rel=1e-9)


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
