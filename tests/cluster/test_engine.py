"""Early stopping, waiting for each other's phases, stop requests and budgets, on a real cluster."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from raysweep import api
from raysweep.contracts import Report
from raysweep.records.folder import SweepFolder
from raysweep.reports.live.progress import Silent
from raysweep.sweep.invariants import check

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

EVERY = 5
JOB: dict[str, Any] = {
    "name": "engine",
    "model": {"name": "gpt2-nano"},
    "data": {"name": "python-docs", "seq_len": 32, "eval_tokens": 512, "probe_windows": 2},
    "training": {"batch_size": 2, "evaluate_every": EVERY},
    "cycle": {
        "baseline": {"steps": 20, "lr": 3.0e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "gradient_sensitivity", "ratio": 0.5},
        "learn": {"steps": 40, "lr": 2.0e-3},
    },
    "search": {
        "space": {"cycle.prune.level": {"choice": [0.2, 0.4]}, "cycle.learn.lr": {"choice": [2.0e-3, 1.0e-6]}},
        "trials": 4,
        "sampler": {"name": "grid"},
    },
    "scale": {"workers": 1, "lanes": 2, "checkpoint_every_steps": 1000},
}


class Watcher(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, str]] = []
        self.last_step: dict[int, int] = {}
        self.reports: dict[int, list[int]] = {}
        self.paused: list[int] = []

    def trial_waiting(self, trial: int, phase: str, cycle: int) -> None:
        self.waiting.append((trial, phase))

    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None:
        if phase == "learn":
            self.last_step[trial] = step

    def reported(self, report: Report) -> None:
        self.reports.setdefault(report.trial, []).append(report.step)

    def trial_paused(self, trial: int) -> None:
        self.paused.append(trial)


def job_with(lanes: int = 1, **search: Any) -> dict[str, Any]:
    job = copy.deepcopy(JOB)
    job["search"].update(search)
    job["scale"]["lanes"] = lanes
    return job


def told(folder: SweepFolder) -> dict[int, optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder.path / "study.journal")))
    trials = optuna.load_study(storage=storage, study_name="raysweep").trials
    return {trial.user_attrs["trial"]: trial for trial in trials}


@pytest.fixture(scope="module")
def reference(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, Watcher]:
    """A sweep on two lanes that no rule stops."""
    watcher = Watcher()
    return api.run(JOB, address=cluster, results=tmp_path_factory.mktemp("whole"), observer=watcher), watcher


def test_each_phase_is_run_once_and_who_needs_it_too_waits_without_a_lane(reference: Any) -> None:
    folder, watcher = reference
    assert {record.status for record in folder.trials().values()} == {"COMPLETE"} and len(folder.trials()) == 4
    ran = [record.key for record in folder.phases() if not record.reused]
    assert len(ran) == len(set(ran)) == 1 + 2 * 3 + 4
    assert {phase for _, phase in watcher.waiting} >= {"baseline"}
    assert check(folder) == []


def test_a_rule_stops_a_trial_at_the_step_of_its_report(cluster: str, tmp_path: Path, reference: Any) -> None:
    watcher = Watcher()
    stopping = {"name": "asha", "reduction": 2, "first": 0.2}
    folder = api.run(job_with(stopping=stopping), address=cluster, results=tmp_path, observer=watcher)
    records = folder.trials()
    stopped = {trial for trial, record in records.items() if record.status == "STOPPED"}
    assert stopped and len(stopped) < 4
    for trial in stopped:
        assert records[trial].stopped and records[trial].objective is None
        assert watcher.last_step.get(trial, 0) <= watcher.reports[trial][-1] < 40
    study = told(folder)
    assert {trial for trial, told in study.items() if told.state == TrialState.PRUNED} == stopped
    assert all(study[trial].intermediate_values for trial in stopped)
    whole = {(r.trial, r.phase): r.outcome() for r in reference[0].phases()}
    assert all(record.outcome() == whole[record.trial, record.phase] for record in folder.phases())
    assert check(folder) == []


def test_paused_trials_go_on_or_stop_when_all_have_come_so_far(cluster: str, tmp_path: Path, reference: Any) -> None:
    watcher = Watcher()
    stopping = {"name": "successive_halving", "reduction": 2, "first": 0.5}
    folder = api.run(job_with(lanes=2, stopping=stopping), address=cluster, results=tmp_path, observer=watcher)
    statuses = [record.status for record in folder.trials().values()]
    assert sorted(statuses) == ["COMPLETE", "COMPLETE", "STOPPED", "STOPPED"]
    assert len(watcher.paused) >= 3
    whole = {(r.trial, r.phase): r.outcome() for r in reference[0].phases()}
    assert all(record.outcome() == whole[record.trial, record.phase] for record in folder.phases())
    assert check(folder) == []


class AskToStop(Watcher):
    """Asks for a stop once somebody learns."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.reason: str | None = None

    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None:
        super().step_logged(trial, phase, step, steps, loss)
        if phase == "learn" and step == 10:
            SweepFolder(self.folder).request_stop()

    def sweep_interrupted(self, reason: str) -> None:
        self.reason = reason


def test_a_sweep_that_was_asked_to_stop_goes_on_from_that_step(cluster: str, tmp_path: Path, reference: Any) -> None:
    watcher = AskToStop(tmp_path / "asked")
    folder = api.run(job_with(), address=cluster, results=tmp_path, name="asked", observer=watcher)
    assert watcher.reason is not None and len(folder.trials()) < 4
    again = Watcher()
    api.resume("asked", address=cluster, results=tmp_path, observer=again)
    whole = {(r.trial, r.phase): r.outcome() for r in reference[0].phases()}
    assert {(r.trial, r.phase): r.outcome() for r in folder.phases()} == whole
    assert check(folder) == []


def test_a_sweep_ends_with_its_budget_and_goes_on_with_a_larger_one(cluster: str, tmp_path: Path) -> None:
    job = job_with() | {"budget": {"flops": 1.0}}
    watcher = AskToStop(tmp_path / "none")
    folder = api.run(job, address=cluster, results=tmp_path, name="budget", observer=watcher)
    assert watcher.reason is not None and "budget.flops" in watcher.reason and len(folder.trials()) < 4
    api.resume("budget", overrides=["budget.flops=1e15"], address=cluster, results=tmp_path)
    assert [record.status for record in folder.trials().values()] == ["COMPLETE"] * 4


def test_the_winner_is_run_on_fresh_seeds(cluster: str, tmp_path: Path) -> None:
    job = job_with(seeds=2, top=2, trials=3, sampler={"name": "random"})
    job["cycle"]["learn"]["steps"] = job["cycle"]["baseline"]["steps"] = 10
    folder = api.run(job, address=cluster, results=tmp_path)
    made = [(proposal.proposer, proposal.seed) for _, proposal in sorted(folder.proposals().items())]
    assert made[:3] == [("random", 0)] * 3
    assert sorted(made[3:]) == [("confirmation", 2), ("confirmation", 3), ("replicate", 1), ("replicate", 1)]
    baselines = {record.key for record in folder.phases() if record.phase == "baseline" and not record.reused}
    assert len(baselines) == 4  # one a seed, shared by its trials
    assert check(folder) == []
