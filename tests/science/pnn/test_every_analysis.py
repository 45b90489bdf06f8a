"""Rules that every analysis keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.subjects import half_right, tiny_pnn, tiny_subject

from raysweep.errors import NotApplicableError
from raysweep.job import registry
from raysweep.networks.pnn.trunk import Embeddings
from raysweep.reports.tables.findings import draw_finding
from raysweep.science.pnn.run import chosen

NAMES = registry.available("analyses")
NETWORKS: dict[str, dict[str, Any]] = {
    "refiner": {}, "hierarchical": {"trunk": "hierarchical"}, "layers": {"trunk": "layers"},
    "shared_layer": {"trunk": "shared_layer"}, "one step": {"num_steps": 1}, "scalar gate": {"gate": "scalar"},
    "all options": {"final_norm": True, "input_injection": True, "step_embedding": True, "random_depth": True,
                    "tie_word_embeddings": True},
}  # fmt: skip

# The refiner itself is asked below.
SELDOM = ("refiner", "hierarchical", "shared_layer", "one step", "scalar gate")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SELDOM else kind for kind in NETWORKS]
)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_every_network_or_says_why_not(name: str, kind: str) -> None:
    subject = half_right(tiny_subject(tiny_pnn(**NETWORKS[kind]), sequences=14))
    before = {key: value.clone() for key, value in subject.network.state_dict().items()}
    try:
        found = registry.build("analyses", name)(subject)
    except NotApplicableError as error:
        assert len(str(error)) > 20 and kind != "refiner"
        return
    assert found.experiment == name and found.verdict.endswith(".") and found.panels
    plain = found.to_dict()
    json.dumps(plain, allow_nan=False)
    assert all(math.isfinite(one.p_value) and 0 < one.p_value <= one.q_value <= 1 or one.p_value == 0
               for one in found.comparisons)  # fmt: skip
    after = subject.network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.network.modules())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_same_twice_and_drawn_and_says_how_much_it_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = 0
    embed = Embeddings.forward

    def counted(self: Any, inputs: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        nonlocal ran
        ran += len(inputs)
        return embed(self, inputs, *arguments, **options)

    subject, analysis = half_right(tiny_subject(sequences=14)), registry.build("analyses", name)
    monkeypatch.setattr(Embeddings, "forward", counted)
    first = analysis(subject)
    assert 0.5 <= analysis.passes(subject) * 14 / ran <= 2
    again = analysis(subject)  # its figures may hold times
    assert (again.comparisons, again.verdict) == (first.comparisons, first.verdict)
    draw_finding(first.to_dict(), tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_every_published_experiment_is_known_by_its_name() -> None:
    published = ["meg", "optogenetics", "brain_modelling", "dimension_wise", "token_difficulty", "layer_importance",
                 "gate_specificity", "layer_wise_activity", "cross_token_interference", "gate_entropy"]  # fmt: skip
    assert len(chosen(published)) == 10
    assert chosen([]) == NAMES
