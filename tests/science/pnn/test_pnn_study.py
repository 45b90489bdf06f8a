"""The study's runs, choices and sentences, on networks of a few steps and on outcomes written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import pnn_study
from benchmarks.pnn_study import JOB, RATES, Arm, Runs, conclusions, figures, markdown, study
from raysweep.job.jobfile import Job, check_job, load_job
from raysweep.records.statistics import mean_of, paired
from raysweep.science.pnn.efficiency import cost


def tiny_job() -> Job:
    """Return the study's job on the embedded corpus, with two arms and two seeds."""
    raw = load_job(JOB).spec.resolved()
    raw["data"] = {"seq_len": 16, "eval_tokens": 64, "probe_windows": 2}
    raw["training"]["batch_size"] = 2
    raw["cycle"]["baseline"]["steps"] = 60
    raw["search"]["space"] = {
        "model.trunk": {"choice": ["refiner", "layers"]},
        "model.gate": {"choice": ["query_key"], "when": {"model.trunk": "refiner"}},
        "model.num_steps": {"choice": [1], "when": {"model.trunk": "layers"}},
    }
    raw["search"] |= {"trials": 2, "seeds": 2}
    return check_job(raw, "study.yaml")


class Recorded(Runs):
    """Writes outcomes instead of training: arms differ by 0.1, seeds by 1, and a rate of 3e-3 is the best."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 1)
        self.jobs: list[dict[str, Any]] = []

    def all(self, jobs: Any) -> Any:
        self.jobs += jobs
        return [self._outcome(job) for job in jobs]

    def _outcome(self, job: dict[str, Any]) -> dict[str, float]:
        steps, lr = job["cycle"]["baseline"]["steps"], job["cycle"]["baseline"]["lr"]
        layers = job["model"]["trunk"] == "layers"
        per_step = cost(check_job(job, "j").spec.model, 16).training_flops * 16 * 2
        loss = 5 + job["seed"] + 0.1 * layers
        return {"loss": loss, "accuracy": 0.1, "training_loss": abs(lr - 3e-3), "training_flops": per_step * steps}


def test_arms_have_the_best_rate_of_their_pilots_and_equal_tokens_or_equal_operations(tmp_path: Path) -> None:
    job, runs = tiny_job(), Recorded(tmp_path / "rows.jsonl")
    found = study(job.spec.resolved(), job, runs)
    assert [(arm.comparison, arm.name) for arm in found] == [
        (comparison, name)
        for comparison in ("equal tokens", "equal training FLOPs")
        for name in ("PNN, gate query_key", "1 layer")
    ]
    assert [arm.steps for arm in found[:3]] == [60, 60, 60] and found[3].steps > 150
    assert found[3].training_flops == pytest.approx(found[2].training_flops, rel=0.01)
    assert {arm.lr for arm in found} == {3e-3}
    pilots = runs.jobs[: 2 * len(RATES)]
    assert {job["seed"] for job in pilots} == {1000} and {job["cycle"]["baseline"]["steps"] for job in pilots} == {30}
    assert {job["seed"] for job in runs.jobs[len(pilots) :]} == {0, 1}
    assert found[1].above is not None and found[1].above.mean == pytest.approx(0.1) and found[0].above is None
    assert found[1].losses == pytest.approx((5.1, 6.1))


def test_operations_that_cannot_be_made_equal_are_an_error(tmp_path: Path) -> None:
    job = tiny_job()
    raw = job.spec.resolved()
    raw["cycle"]["baseline"]["steps"] = 3
    with pytest.raises(ValueError, match="1 layer: .* training FLOPs; take more steps"):
        study(raw, job, Recorded(tmp_path / "rows.jsonl"))


def test_a_run_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tiny_job().spec.resolved()
    job = pnn_study._settings(raw, {"model.trunk": "layers", "model.num_steps": 1}, steps=2)
    first = Runs(tmp_path / "rows.jsonl", 1).all([job, job])
    assert first[0] == first[1] and first[0]["tokens"] == 2 * 2 * 16 and 5 < first[0]["loss"] < 9
    monkeypatch.setattr(pnn_study, "run", None)
    assert Runs(tmp_path / "rows.jsonl", 1).all([job]) == first[:1]


def made_up(name: str, losses: tuple[float, ...], reference: tuple[float, ...]) -> Arm:
    by_seed, of_reference = dict(enumerate(losses)), dict(enumerate(reference))
    return Arm(
        comparison="equal tokens", name=name, steps=10, lr=1e-3, loss=mean_of(losses), losses=losses, accuracy=0.25,
        training_flops=2e12, above=None if losses == reference else paired(by_seed, of_reference),
    )  # fmt: skip


def test_what_is_concluded_follows_from_the_numbers() -> None:
    pnn = (5.0, 5.2, 5.1)
    arms = [
        made_up("PNN", pnn, pnn),
        made_up("good", (4.5, 4.701, 4.599), pnn),
        made_up("bad", (5.5, 5.701, 5.599), pnn),
        made_up("alike", (5.1, 5.1, 5.1), pnn),
    ]
    said = conclusions(arms)
    assert said[0] == (
        "- At equal tokens: better than the published gate: good; worse: bad; no difference shown: alike."
    )
    assert "3 differences were tested together" in said[1] and "3 seeds" in said[1]
    page = markdown(arms)
    assert "| good | 10 | 0.001 | 2.000 | 4.6000 [" in page and "| 25.0% | -0.5000 [" in page
    assert [figure.measured for figure in figures(arms)] == [5.1, 4.6, 5.6, 5.1]
    assert figures(arms)[1].runs["low"] < 4.6 < figures(arms)[1].runs["high"]
