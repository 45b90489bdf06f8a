"""The same refiner over patches of images: nothing in it is about text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support.helpers import cpu, run_all, some_batch, tiny_model
from support.jobs import REPOSITORY, quick_plan

from raysweep.job.jobfile import check_job
from raysweep.networks.plasticity.objective import logits_of
from raysweep.networks.pnn.parts import Refiner
from raysweep.trial.data.trial_data import trial_data
from raysweep.trial.state import TrialState

PATCHES = 17
"""16 of 2 x 2 pixels, and the class."""


@pytest.mark.slow
def test_digits_are_learnt_and_heads_are_pruned_and_grown_back(tmp_path: Path) -> None:
    plan = quick_plan(
        model__name="pnn-vision-nano", data__name="digits", data__probe_windows=32, training__batch_size=32,
        cycle__cycles=2, cycle__baseline__steps=100, cycle__baseline__lr=3e-3, cycle__learn__steps=20,
        cycle__learn__lr=5e-4, cycle__prune__level=0.4,
    )  # fmt: skip
    records = run_all(plan, tmp_path)
    assert records[0].accuracy is not None and records[0].accuracy > 0.4  # chance is a tenth
    assert records[0].metrics["matthews"] == pytest.approx((10 * records[0].accuracy - 1) / 9, abs=0.05)
    assert [record.active_heads for record in records] == [8, 5, 5, 6, 6, 3, 3, 4, 4]
    for prune, grow, learn in ((1, 3, 4), (5, 7, 8)):
        assert records[grow].loss == pytest.approx(records[prune].loss, rel=1e-5)
        assert records[learn].loss < records[prune].loss
    assert records[0].tokens == 100 * 32 * PATCHES
    saved = records[0].flops_per_token - records[1].flops_per_token
    assert saved == pytest.approx(3 * 4 * (2 * 4 * 64 * 8 + 4 * PATCHES * 8))  # 3 heads at 4 steps


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    model, batch = tiny_model("pnn_vision"), some_batch("pnn_vision", 3)
    everything = torch.ones(3, 7)  # 3 x 2 patches and the class
    with torch.no_grad():
        seen = logits_of(model, batch)
        torch.testing.assert_close(logits_of(model, replace(batch, attention_mask=everything)), seen)


def test_patches_tell_their_places_apart_and_mix_through_attention() -> None:
    model, batch = tiny_model("pnn_vision"), some_batch("pnn_vision", 1)
    states = model.network.pnn.states
    moved = batch.inputs.roll(2, dims=-1)  # by one patch: the same patches, elsewhere
    changed = batch.inputs.clone()
    changed[..., 4:, 2:] += 1.0  # the last patch alone
    with torch.no_grad():
        assert not torch.allclose(states(batch.inputs)[-1][:, 0], states(moved)[-1][:, 0])
        before, after = states(batch.inputs), states(changed)
    differs = [(a - b).abs().amax((0, 2)) > 1e-9 for a, b in zip(before, after, strict=True)]
    assert differs[0].tolist() == [False] * 6 + [True] and differs[1].all()


def test_the_job_is_one_refiner_over_digits() -> None:
    content = yaml.safe_load((REPOSITORY / "jobs" / "pnn_digits.yaml").read_text())
    plan = quick_plan(model__name=content["model"]["name"], data__name=content["data"]["name"])
    assert check_job(content, "pnn_digits.yaml").spec.model.name == "pnn-vision-nano"
    network = TrialState.first(plan, trial_data(plan).facts, cpu()).model.network
    assert [type(module) for module in network.modules()].count(Refiner) == 1
    assert not any(
        isinstance(module, torch.nn.Embedding) and module.num_embeddings > PATCHES for module in network.modules()
    )
