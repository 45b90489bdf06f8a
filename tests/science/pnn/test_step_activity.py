"""A planted change of the relative update is found; growth of the state alone is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.subjects import tiny_pnn, tiny_subject

from raysweep.science.pnn.analyses.step_activity import Analysis
from raysweep.science.pnn.subject import untrained_twin


def scaled(factor: float) -> object:
    """Return an untrained network whose proposals are multiplied."""
    network = untrained_twin(tiny_pnn(), seed=7)
    with torch.no_grad():
        network.pnn.refiner.feed_forward_norm.weight.mul_(factor)
        network.pnn.refiner.feed_forward_norm.bias.mul_(factor)
    return network


def test_an_untrained_network_is_not_told_apart_though_its_state_grows() -> None:
    finding = Analysis()(tiny_subject(untrained_twin(tiny_pnn(), seed=7)))
    assert "not found to differ from untrained networks" in finding.verdict
    assert finding.figures["growth_of_state_norm"]["trained"] > 1.2


@pytest.mark.parametrize(("factor", "verdict"), [(0.05, "to later steps"), (20.0, "to earlier steps")])
def test_the_direction_follows_from_the_relative_updates(factor: float, verdict: str) -> None:
    """Small updates are all of one relative size; large ones fill the state at once, and later ones add little."""
    finding = Analysis()(tiny_subject(scaled(factor)))
    assert f"training moves activity {verdict}" in finding.verdict


def test_figures_are_the_mean_ratios_of_norms() -> None:
    subject = tiny_subject(tiny_pnn(trunk="layers"), sequences=18)
    finding = Analysis()(subject)
    with torch.no_grad():
        states = torch.cat([torch.stack(subject.network.pnn.states(batch.inputs)) for batch in subject.batches], 1)
    ratios = states.diff(dim=0).norm(dim=-1) / states[:-1].norm(dim=-1)
    assert finding.figures["relative_update"] == pytest.approx(ratios.mean((1, 2)).tolist())
    assert finding.figures["state_norm"]["trained"] == pytest.approx(states.norm(dim=-1).mean((1, 2)).tolist())
    assert np.shape(finding.figures["relative_update_untrained"])[1] == 3


def test_one_step_has_no_trend() -> None:
    assert Analysis()(tiny_subject(tiny_pnn(num_steps=1))).verdict.startswith("One step has no trend.")
