"""The searcher proposes what an uninterrupted sweep would have proposed, whenever and however often it was killed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import cloudpickle

from raysweep.archive import Proposal, SweepFolder
from raysweep.cluster.searcher import SweepSearcher
from raysweep.jobfile import Job, check_job
from raysweep.records import Status, TrialRecord

SPACE: dict[str, Any] = {
    "cycle.prune.strategy": {"choice": ["taylor", "entropy"]},
    "cycle.prune.direction": {"choice": ["high", "low"], "when": {"cycle.prune.strategy": "entropy"}},
    "cycle.prune.level": {"uniform": [0.1, 0.7], "step": 0.1},
    "cycle.grow.ratio": {"uniform": [0.0, 1.0], "step": 0.05},
    "cycle.learn.lr": {"log_uniform": [1e-4, 1e-2]},
    "cycle.learn.gate_warmup_steps": {"integer": [0, 8], "step": 4},
}
TRIALS = 12


def make_job(*, trials: int = TRIALS, sampler: Mapping[str, Any] | None = None, search: bool = True) -> Job:
    raw: dict[str, Any] = {
        "name": "demo",
        "model": {"name": "gpt2-nano"},
        "cycle": {
            "prune": {"strategy": "taylor", "level": 0.3},
            "grow": {"strategy": "random", "ratio": 0.5},
            "learn": {"steps": 20, "lr": 1e-3},
        },
    }
    if search:
        sampler = sampler or {"name": "tpe", "startup_trials": 3}
        raw["search"] = {"space": SPACE, "trials": trials, "sampler": dict(sampler)}
    return check_job(raw, "job.yaml")


def new_sweep(results: Path, job: Job) -> SweepFolder:
    return SweepFolder.create(results, job, None, {})


class Driver:
    """A driver's life as the searcher sees it: asks for trials, tells how they ended, may die at any point."""

    def __init__(self, folder: SweepFolder, job: Job) -> None:
        self.folder, self.job = folder, job
        self.started: list[Proposal] = []
        self.searcher = SweepSearcher(folder, job, self._start)

    def _start(self, proposal: Proposal) -> dict[str, Any]:
        assert self.folder.proposals()[proposal.trial] == proposal, "handed out before it is in the archive"
        self.started.append(proposal)
        return {"trial": proposal.trial}

    def ask(self) -> Proposal:
        self.searcher.suggest(f"tune-{len(self.started)}")
        return self.started[-1]

    def archive(self, proposal: Proposal, status: Status = "COMPLETE", objective: float | None = None) -> None:
        if status == "COMPLETE" and objective is None:
            objective = loss_of(proposal.values)
        self.folder.add_trial(
            TrialRecord(
                trial=proposal.trial, status=status, values=proposal.values, seed=0, proposer=proposal.proposer,
                objective=objective, attempts=proposal.attempt, phases=[], seconds=0.0,
            )
        )  # fmt: skip

    def tell(self, proposal: Proposal, status: Status = "COMPLETE", objective: float | None = None) -> None:
        if status == "COMPLETE" and objective is None:
            objective = loss_of(proposal.values)
        index = max(index for index, started in enumerate(self.started) if started.trial == proposal.trial)
        self.searcher.on_trial_complete(f"tune-{index}", {"status": status, "objective": objective, "done": True})

    def end(self, proposal: Proposal, status: Status = "COMPLETE", objective: float | None = None) -> None:
        self.archive(proposal, status, objective)
        self.tell(proposal, status, objective)

    def run(self) -> list[Proposal]:
        """Run what remains, one trial at a time."""
        return [self.run_one() for _ in range(self.searcher.remaining)]

    def run_one(self) -> Proposal:
        proposal = self.ask()
        self.end(proposal)
        return proposal


def loss_of(values: Mapping[str, Any]) -> float:
    return (values["cycle.prune.level"] - 0.4) ** 2 + values["cycle.grow.ratio"] if values else 1.0


def study_of(folder: SweepFolder) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder.path / "study.journal")))
    return optuna.load_study(storage=storage, study_name="raysweep")


def states(folder: SweepFolder) -> list[TrialState]:
    return [trial.state for trial in study_of(folder).trials]


def values_by_trial(folder: SweepFolder) -> dict[int, dict[str, Any]]:
    return {trial: proposal.values for trial, proposal in folder.proposals().items()}


@pytest.fixture
def job() -> Job:
    return make_job()


@pytest.fixture
def folder(tmp_path: Path, job: Job) -> SweepFolder:
    return new_sweep(tmp_path / "results", job)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The values of a sweep that nothing disturbed."""
    job = make_job()
    folder = new_sweep(tmp_path_factory.mktemp("uninterrupted"), job)
    Driver(folder, job).run()
    return values_by_trial(folder)


# What is proposed.


def test_a_proposal_is_in_the_archive_before_it_is_returned(folder: SweepFolder, job: Job) -> None:
    driver = Driver(folder, job)  # asserts it at every ask
    assert driver.searcher.suggest("tune-0") == {"trial": 1}
    assert folder.proposals()[1] == driver.started[0]
    assert (driver.started[0].proposer, driver.started[0].attempt, driver.started[0].optuna_number) == ("tpe", 1, 0)


def test_trials_are_numbered_from_one_and_counted_exactly(folder: SweepFolder, job: Job) -> None:
    driver = Driver(folder, job)
    assert driver.searcher.remaining == TRIALS
    assert [proposal.trial for proposal in driver.run()] == list(range(1, TRIALS + 1))
    assert driver.searcher.remaining == 0


def test_values_respect_conditions_ranges_and_steps(folder: SweepFolder, job: Job) -> None:
    Driver(folder, job).run()
    proposed = list(values_by_trial(folder).values())
    assert {values["cycle.prune.strategy"] for values in proposed} == {"taylor", "entropy"}
    for values in proposed:
        assert ("cycle.prune.direction" in values) == (values["cycle.prune.strategy"] == "entropy")
        assert values["cycle.prune.level"] in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
        assert round(values["cycle.grow.ratio"], 2) == values["cycle.grow.ratio"]
        assert 1e-4 <= values["cycle.learn.lr"] <= 1e-2
        assert values["cycle.learn.gate_warmup_steps"] in (0, 4, 8)
        assert isinstance(values["cycle.learn.gate_warmup_steps"], int)
        job.with_values(values)  # every point is a valid job


def test_a_step_gives_the_number_that_a_person_would_write(folder: SweepFolder) -> None:
    """0.1 + 2 x 0.1 is 0.30000000000000004: another phase than one at 0.3, and an ugly table."""
    job = make_job(trials=30, sampler={"name": "random"})
    Driver(folder, job).run()
    written = {json.dumps(values["cycle.prune.level"]) for values in values_by_trial(folder).values()}
    assert written == {"0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"}


def test_the_same_seed_proposes_the_same(tmp_path: Path, uninterrupted: dict[int, dict[str, Any]]) -> None:
    job = make_job()
    folder = new_sweep(tmp_path / "again", job)
    Driver(folder, job).run()
    assert values_by_trial(folder) == uninterrupted


def test_results_steer_what_is_proposed_next(tmp_path: Path, uninterrupted: dict[int, dict[str, Any]]) -> None:
    job = make_job()
    folder = new_sweep(tmp_path / "other", job)
    driver = Driver(folder, job)
    for _ in range(TRIALS):
        proposal = driver.ask()
        driver.end(proposal, objective=-loss_of(proposal.values))
    ours = values_by_trial(folder)
    drawn = range(1, 5)  # three at random; the fourth is the first that the model proposes
    assert [ours[trial] for trial in drawn[:3]] == [uninterrupted[trial] for trial in drawn[:3]]
    assert ours != uninterrupted


def test_without_a_space_there_is_one_trial_that_the_job_proposes(tmp_path: Path) -> None:
    job = make_job(search=False)
    folder = new_sweep(tmp_path, job)
    driver = Driver(folder, job)
    assert driver.searcher.remaining == 1
    assert driver.run() == [Proposal(trial=1, values={}, proposer="job", seed=0, attempt=1)]
    assert not (folder.path / "study.journal").exists()
    assert Driver(folder, job).searcher.remaining == 0


def test_without_a_space_an_unfinished_trial_is_resumed(tmp_path: Path) -> None:
    job = make_job(search=False)
    folder = new_sweep(tmp_path, job)
    Driver(folder, job).ask()
    assert [proposal.attempt for proposal in Driver(folder, job).run()] == [2]


# What the study is told.


def test_each_end_of_a_trial_is_told_as_what_it_is(folder: SweepFolder, job: Job) -> None:
    driver = Driver(folder, job)
    ends: list[tuple[Status, TrialState]] = [
        ("COMPLETE", TrialState.COMPLETE),
        ("DIVERGED", TrialState.FAIL),
        ("FAILED", TrialState.FAIL),
    ]
    for status, _ in ends:
        driver.end(driver.ask(), status, 2.5 if status == "COMPLETE" else None)
    assert states(folder) == [state for _, state in ends]
    assert study_of(folder).best_value == 2.5


def test_concurrent_trials_may_end_in_any_order(folder: SweepFolder, job: Job) -> None:
    driver = Driver(folder, job)
    asked = [driver.ask() for _ in range(4)]
    assert states(folder) == [TrialState.RUNNING] * 4
    for objective, proposal in enumerate(reversed(asked)):
        driver.end(proposal, objective=float(objective))
    assert [trial.value for trial in study_of(folder).trials] == [3.0, 2.0, 1.0, 0.0]


def test_nothing_is_left_running_at_the_end(folder: SweepFolder, job: Job) -> None:
    Driver(folder, job).run()
    assert states(folder) == [TrialState.COMPLETE] * TRIALS


def test_a_lost_client_ends_no_trial(folder: SweepFolder, job: Job) -> None:
    """Ray lost what waited for the trial, not the trial: it has no record, and a resumed sweep takes it up."""
    driver = Driver(folder, job)
    proposal = driver.ask()
    driver.searcher.on_trial_complete("tune-0", error=True)
    assert states(folder) == [TrialState.RUNNING]
    resumed = Driver(folder, job)
    resumed.end(resumed.ask())
    assert resumed.started[0].trial == proposal.trial
    assert states(folder) == [TrialState.COMPLETE]


# Killed and resumed.


def test_resume_hands_out_unfinished_trials_first_then_new_ones(folder: SweepFolder, job: Job) -> None:
    driver = Driver(folder, job)
    asked = [driver.ask() for _ in range(4)]
    driver.end(asked[1])
    resumed = Driver(folder, job)
    assert resumed.searcher.remaining == TRIALS - 1
    taken_up = resumed.run()
    assert [proposal.trial for proposal in taken_up] == [1, 3, 4, *range(5, TRIALS + 1)]
    for proposal, earlier in zip(taken_up, (asked[0], asked[2], asked[3]), strict=False):
        assert proposal == Proposal(**{**earlier.__dict__, "attempt": 2})
    assert all(proposal.attempt == 1 for proposal in taken_up[3:])
    assert states(folder) == [TrialState.COMPLETE] * TRIALS


def test_every_resume_is_one_attempt_more(folder: SweepFolder, job: Job) -> None:
    for attempt in (1, 2, 3):
        assert Driver(folder, job).ask().attempt == attempt
    assert len(states(folder)) == 1


def test_a_finished_sweep_has_nothing_left_to_propose(folder: SweepFolder, job: Job) -> None:
    Driver(folder, job).run()
    assert Driver(folder, job).searcher.remaining == 0


@pytest.mark.parametrize("status", ["COMPLETE", "DIVERGED", "FAILED"])
def test_a_result_that_the_study_missed_is_told_on_reopening(folder: SweepFolder, job: Job, status: Status) -> None:
    driver = Driver(folder, job)
    driver.archive(driver.ask(), status, 0.5 if status == "COMPLETE" else None)  # killed here
    assert states(folder) == [TrialState.RUNNING]
    assert Driver(folder, job).searcher.remaining == TRIALS - 1
    assert states(folder) == [TrialState.COMPLETE if status == "COMPLETE" else TrialState.FAIL]
    assert study_of(folder).trials[0].value == (0.5 if status == "COMPLETE" else None)


def test_a_result_that_only_the_study_knows_is_found_again(folder: SweepFolder, job: Job) -> None:
    """The archive is the truth: what it does not have is run once more, and that must not upset the study."""
    driver = Driver(folder, job)
    driver.tell(driver.ask())  # killed before the record was written
    resumed = Driver(folder, job)
    assert resumed.run()[0] == Proposal(**{**driver.started[0].__dict__, "attempt": 2})
    assert sorted(folder.trials()) == list(range(1, TRIALS + 1))
    assert states(folder) == [TrialState.COMPLETE] * TRIALS


def test_an_ask_that_became_no_proposal_is_closed_and_does_not_count(
    folder: SweepFolder, job: Job, uninterrupted: dict[int, dict[str, Any]]
) -> None:
    first = Driver(folder, job)
    for _ in range(5):
        first.end(first.ask())
    lost = study_of(folder).ask()  # killed before the proposal was in the archive, half of its values drawn
    lost.suggest_categorical("cycle.prune.strategy", ["taylor", "entropy"])
    resumed = Driver(folder, job)
    assert resumed.searcher.remaining == TRIALS - 5
    resumed.run()
    assert states(folder).count(TrialState.FAIL) == 1 and states(folder)[5] == TrialState.FAIL
    assert states(folder).count(TrialState.COMPLETE) == TRIALS
    assert values_by_trial(folder) == uninterrupted


def test_a_journal_that_ends_in_the_middle_of_a_line_is_read_up_to_there(tmp_path: Path, job: Job) -> None:
    """A full disk or a power cut leaves half a line; Optuna would never read that journal again."""
    whole = new_sweep(tmp_path / "whole", job)
    driver = Driver(whole, job)
    for _ in range(4):
        driver.run_one()
    journal = whole.path / "study.journal"
    before = journal.stat().st_size
    archived = (whole.path / "plans.jsonl").read_bytes()
    fifth = driver.ask()
    line = journal.read_bytes()[before:].index(b"\n") + 1
    for number, end in enumerate([before + 1, before + line // 2, before + line, journal.stat().st_size - 1]):
        cut = new_sweep(tmp_path / f"cut-{number}", job)
        for name in ("study.journal", "plans.jsonl", "trials.jsonl"):
            shutil.copy(whole.path / name, cut.path / name)
        os.truncate(cut.path / "study.journal", end)
        (cut.path / "plans.jsonl").write_bytes(archived)  # the proposal is written after the study knows it
        resumed = Driver(cut, job)
        assert resumed.ask().values == fifth.values
        resumed.end(resumed.started[0])
        assert states(cut).count(TrialState.COMPLETE) == 5 and TrialState.RUNNING not in states(cut)


def test_a_lock_that_a_killed_driver_left_on_the_journal_is_not_waited_for(
    folder: SweepFolder, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    Driver(folder, job).ask()
    (folder.path / "study.journal.lock").symlink_to(folder.path / "study.journal")

    def sleep(seconds: float) -> None:
        pytest.fail("waits for a lock that nobody holds")

    monkeypatch.setattr("optuna.storages.journal._file.time.sleep", sleep)
    Driver(folder, job).run_one()
    assert states(folder) == [TrialState.COMPLETE]


def die_before_the_record(driver: Driver) -> None:
    driver.ask()


def die_between_record_and_tell(driver: Driver) -> None:
    driver.archive(driver.ask())


def die_between_tell_and_record(driver: Driver) -> None:
    driver.tell(driver.ask())


def die_between_trials(driver: Driver) -> None:
    driver.end(driver.ask())


@pytest.mark.parametrize(
    "die", [die_before_the_record, die_between_record_and_tell, die_between_tell_and_record, die_between_trials]
)
@pytest.mark.parametrize("sampler", [{"name": "tpe", "startup_trials": 3}, {"name": "random"}], ids=["tpe", "random"])
def test_a_resumed_searcher_proposes_exactly_what_an_uninterrupted_one_would_have(
    tmp_path: Path, die: Callable[[Driver], None], sampler: dict[str, Any]
) -> None:
    job = make_job(sampler=sampler)
    whole, cut = new_sweep(tmp_path / "whole", job), new_sweep(tmp_path / "cut", job)
    Driver(whole, job).run()
    while (driver := Driver(cut, job)).searcher.remaining:
        die(driver)
        if (survivor := Driver(cut, job)).searcher.remaining:
            survivor.run_one()
    assert values_by_trial(cut) == values_by_trial(whole)
    assert sorted(cut.trials()) == list(range(1, TRIALS + 1))
    assert states(cut) == [TrialState.COMPLETE] * TRIALS


# What Tune does with its searcher.


@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_pickling_works_though_it_holds_files_and_closures(folder: SweepFolder, job: Job, pickler: Any) -> None:
    driver = Driver(folder, job)
    driver.ask()
    assert isinstance(pickler.loads(pickler.dumps(driver.searcher)), SweepSearcher)
    driver.end(driver.started[0])  # and the original is none the worse for it


def test_tune_may_save_it_whenever_it_likes(folder: SweepFolder, job: Job, tmp_path: Path) -> None:
    driver = Driver(folder, job)
    driver.ask()
    driver.searcher.save_to_dir(str(tmp_path))
    driver.end(driver.started[0])
    assert driver.ask().trial == 2
