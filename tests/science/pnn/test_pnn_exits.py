"""Exit curves of one network: paired, with thresholds chosen on one half and reported on the other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.helpers import cpu
from support.recurrent import network_of

from raysweep.contracts import Facts
from raysweep.job import registry
from raysweep.reports.plots.exit_curves import draw_exit_curves
from raysweep.science.pnn.exit_curves import ExitCurves, ExitPoint, exit_curves
from raysweep.trial.measures.evaluation import seeded_batches
from raysweep.trial.measures.inference import halves_of

THRESHOLDS = {"delta_norm": ("threshold", (0.2, 0.4)), "patience": ("patience", (1,)), "learned": ("quantile", (0.5,))}


def curves_of(**options: Any) -> ExitCurves:
    task = registry.load("tasks", "masked_lm")(facts=Facts(vocab_size=48, mask_token=47))
    examples = torch.randint(0, 47, (9, 11), generator=torch.Generator().manual_seed(0)).numpy()
    halves = [seeded_batches(examples, half, 4, task, cpu()) for half in halves_of(9)]
    return exit_curves(network_of(**options), halves, thresholds=THRESHOLDS, runs=1)


def test_every_depth_and_every_threshold_is_measured_on_both_halves() -> None:
    found = curves_of()
    assert [point.steps for point in found.points if point.exit == "none"] == [1, 2, 3, 4, 5, 6]
    assert [(p.exit, p.options) for p in found.points[6:]] == [
        ("delta_norm", {"threshold": 0.2}), ("delta_norm", {"threshold": 0.4}), ("patience", {"patience": 1}),
        ("learned", {"quantile": 0.5}),
    ]  # fmt: skip
    assert all(point.searched != point.reported and point.seconds_per_token > 0 for point in found.points)
    flops = [point.reported["flops_per_token"] for point in found.points[:6]]
    steps = [after - before for before, after in zip(flops, flops[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * 5)


def test_chance_leaves_after_as_many_steps() -> None:
    for point in curves_of().points[6:]:
        assert point.control is not None
        assert point.control["mean_steps"] == pytest.approx(point.searched["mean_steps"], abs=0.3)


def test_without_an_exit_head_nothing_is_learned() -> None:
    assert "learned" not in {point.exit for point in curves_of(step_weights="linear").points}


def point(exit: str, accuracy: float, flops: float, seconds: float = 1.0, **more: Any) -> ExitPoint:
    numbers = {"accuracy": accuracy, "flops_per_token": flops, "mean_steps": 2.0}
    about: dict[str, Any] = {"options": {}, "steps": 2, "searched": numbers, "reported": numbers} | more
    return ExitPoint(exit=exit, seconds_per_token=seconds, **about)


def test_savings_are_chosen_on_one_half_and_told_of_the_other() -> None:
    other = {"accuracy": 0.45, "flops_per_token": 60.0, "mean_steps": 1.0}
    curves = ExitCurves(trained_steps=2, batch_size=32, points=[
        point("none", 0.5, 100.0),
        point("none", 0.4, 50.0, steps=1),
        point("kl", 0.4985, 80.0, 0.9, options={"divergence": 0.1}, reported=other, control={"accuracy": 0.44}),
        point("kl", 0.4979, 30.0, 0.1, options={"divergence": 0.5}),  # cheaper, but 0.21 points below
        point("patience", 0.3, 10.0),
    ])  # fmt: skip
    fixed, kl = curves.savings
    assert (fixed.exit, fixed.flops, fixed.accuracy) == ("none", 0.0, 0.0)
    assert (kl.exit, kl.chosen) == ("kl", {"divergence": 0.1, "steps": 2})
    assert (kl.flops, kl.seconds) == pytest.approx((0.4, 0.1))
    assert (kl.accuracy, kl.over_chance) == pytest.approx((-0.05, 0.01))


def test_it_is_plain_data_and_a_picture(tmp_path: Path) -> None:
    curves = ExitCurves(trained_steps=2, batch_size=8, points=[point("none", 0.5, 1e6), point("kl", 0.4, 2e5)])
    curves = replace(
        curves, points=[*curves.points, point("kl", 0.45, 3e5, control={"accuracy": 0.4, "flops_per_token": 3e5})]
    )
    content = json.loads(json.dumps(curves.to_dict()))
    assert content["savings"][0]["exit"] == "none"
    draw_exit_curves(content, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1050, 750)
