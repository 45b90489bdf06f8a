"""A sweep that has begun is stopped, resumed, extended, forked and retried, and stays the sweep that it was."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.inline import InlineDriver, new_sweep, search_job
from support.jobs import checked_job, quick_job
from support.sound import damage, rewrite
from support.sweeps import contents

from raysweep import api
from raysweep.cluster import ownership
from raysweep.errors import ArchiveError, SpecError, UsageError
from raysweep.job.identity import job_hash
from raysweep.job.jobfile import check_job
from raysweep.job.paths import get_path, set_path
from raysweep.job.plan import Fingerprints
from raysweep.job.yamlfile import dump_mapping, load_mapping
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord
from raysweep.reports.live.progress import Silent
from raysweep.sweep import lifecycle
from raysweep.sweep.agenda import Agenda


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> InlineDriver:
    driver = InlineDriver()
    monkeypatch.setattr("raysweep.cluster.driver.run_sweep", driver)
    return driver


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """Three trials that have ended."""
    folder = new_sweep(tmp_path_factory.mktemp("finished"), search_job())
    InlineDriver()(folder, folder.job(), marks(folder))
    return folder


@pytest.fixture
def sweep(finished: SweepFolder, results: Path, driver: InlineDriver) -> SweepFolder:
    """A copy of the finished one."""
    shutil.copytree(finished.path, results / "s")
    return SweepFolder.open(results, "s")


def marks(folder: SweepFolder) -> Fingerprints:
    return Fingerprints(**folder.environment()["fingerprints"])


def outcomes(folder: SweepFolder, trial: int) -> list[dict[str, Any]]:
    return [record.outcome() for record in folder.phases() if record.trial == trial]


def refusal(error: pytest.ExceptionInfo[SpecError]) -> str:
    return str(error.value)


# Resume.


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("trials.jsonl", ()),
        ("phases.jsonl", ("1 phase records were brought back",)),
        ("plans.jsonl", ("the plans of trials 2 were taken from how they ended",)),
    ],
)
def test_a_resumed_sweep_runs_what_a_damaged_line_lost(
    sweep: SweepFolder, results: Path, driver: InlineDriver, file: str, said: tuple[str, ...]
) -> None:
    before = [outcomes(sweep, trial) for trial in (1, 2, 3)]
    objectives = {trial: record.objectives for trial, record in sweep.trials().items()}
    damage(sweep, file, 2, lambda line: bytes(len(line)))
    told: list[str] = []

    class Watching(Silent):
        def mended(self, done: Sequence[str]) -> None:
            told.extend(done)

    api.resume("s", results=results, observer=Watching())
    assert f"{file}: line 2 (it holds control characters) is damaged and set aside in {file}.damaged" in told[0]
    assert len(told) == 1 + len(said) and all(text in told[1] for text in said)
    assert [outcomes(sweep, trial) for trial in (1, 2, 3)] == before
    assert {trial: record.objectives for trial, record in sweep.trials().items()} == objectives
    assert driver.ran == [], "what the checkpoints hold is not trained again"


@pytest.mark.parametrize("path", ["cycle.learn.lr", "data.seq_len", "seed", "scale.workers"])
def test_a_job_that_was_edited_is_not_gone_on_with(sweep: SweepFolder, results: Path, path: str) -> None:
    rewrite(sweep, "plans.jsonl", lambda lines: [line.update(job=job_hash(sweep.job().spec)) for line in lines])
    job = load_mapping(sweep.path / "job.yaml")
    set_path(job, path, 2 * (get_path(job, path) or 1))
    (sweep.path / "job.yaml").write_text(dump_mapping(job))
    before = contents(sweep.path)
    with pytest.raises(ArchiveError) as refused:
        api.resume("s", results=results)
    said = str(refused.value)
    assert "job.yaml is not the job that trials 1, 2, 3 of sweep 's' were planned by: it was edited." in said
    assert "Put it back as it was" in said and "\n" not in said
    assert {name: text for name, text in contents(sweep.path).items() if not name.endswith((".lock", "/s"))} == {
        name: text for name, text in before.items() if not name.endswith((".lock", "/s"))
    }


def test_every_trial_is_planned_by_its_job(sweep: SweepFolder) -> None:
    job = sweep.job()
    rewrite(sweep, "plans.jsonl", lambda lines: lines.pop())
    planned = Agenda(sweep, replace(job, space=None), None).next()
    assert planned is not None and planned.job == job_hash(job.spec)


def test_a_resumed_sweep_may_be_given_other_limits(results: Path, driver: InlineDriver) -> None:
    folder = new_sweep(results, search_job(trials=2))
    before = (folder.path / "job.yaml").stat().st_mtime_ns
    settings = ["budget.hours=3", "search.trials=3", "scale.max_attempts=5", "scale.checkpoint_every_steps=50"]
    api.resume("s", overrides=settings, results=results)
    spec = SweepFolder.open(results, "s").job().spec
    assert (spec.budget.hours, spec.scale.max_attempts, spec.scale.checkpoint_every_steps) == (3, 5, 50)
    assert spec.search is not None and spec.search.trials == 3 and sorted(folder.trials()) == [1, 2, 3]
    assert (folder.path / "job.yaml").stat().st_mtime_ns == before, "sweeps are listed by it, oldest first"
    api.resume("s", overrides=["budget.hours=null"], results=results)
    assert SweepFolder.open(results, "s").job().spec.budget.hours is None


@pytest.mark.parametrize(
    "setting",
    ["cycle.prune.level=0.5", "seed=1", "search.minimize=params", "scale.workers=2", "scale.gpus_per_worker=1",
     "training.batch_size=8", "search.space=other.yaml", "search.sampler.name=random", "name=x", "budget=1",
     "buget.hours=1"],
)  # fmt: skip
def test_a_resumed_sweep_is_not_given_another_meaning(sweep: SweepFolder, results: Path, setting: str) -> None:
    before = contents(sweep.path)
    with pytest.raises(SpecError) as error:
        api.resume("s", overrides=["budget.hours=2", setting], results=results)
    key = setting.partition("=")[0]
    assert f"--set: {key} = " in refusal(error) and "not another meaning" in refusal(error)
    assert "raysweep fork SWEEP TRIAL --after PHASE" in refusal(error) and "budget.hours," in refusal(error)
    assert {name: text for name, text in contents(sweep.path).items() if not name.endswith((".lock", sweep.name))} == {
        name: text for name, text in before.items() if not name.endswith((".lock", sweep.name))
    }


def test_all_faults_of_settings_are_told_at_once(sweep: SweepFolder, results: Path) -> None:
    with pytest.raises(SpecError) as error:
        api.resume("s", overrides=["seed=1", "search.trials=2", "nonsense"], results=results)
    assert [fault.key for fault in error.value.faults] == ["nonsense", "seed", "search.trials"]
    assert "has 3 trials already" in refusal(error)
    with pytest.raises(SpecError, match="--set: budget.hours = -1: must be greater than 0"):
        api.resume("s", overrides=["budget.hours=-1"], results=results)
    with pytest.raises(SpecError, match="--set: budget.hours = 'soon'"):
        api.resume("s", overrides=["budget.hours=soon"], results=results)


def test_more_lanes_than_this_machine_has_are_refused_before_anything_changes(
    sweep: SweepFolder, results: Path
) -> None:
    with pytest.raises(SpecError, match="1000 lanes x 1 workers"):
        api.resume("s", overrides=["scale.lanes=1000"], results=results)
    assert sweep.job().spec.scale.lanes == 1


# Extend.


@pytest.mark.parametrize(("trials", "planned"), [("+2", 5), ("4", 4), (4, 4), (" +1 ", 4)])
def test_a_sweep_is_extended(
    sweep: SweepFolder, results: Path, driver: InlineDriver, trials: Any, planned: int
) -> None:
    before = {trial: outcomes(sweep, trial) for trial in (1, 2, 3)}
    api.extend("s", trials, results=results)
    assert sorted(sweep.trials()) == list(range(1, planned + 1))
    assert {trial: outcomes(sweep, trial) for trial in (1, 2, 3)} == before
    assert (1, "baseline") not in driver.ran and all(phase != "baseline" for _, phase in driver.ran)


@pytest.mark.parametrize("trials", ["3", "+0", "2", "1"])
def test_an_extension_is_more(sweep: SweepFolder, results: Path, trials: str) -> None:
    with pytest.raises(UsageError, match=r"has 3 trials already.*\+N"):
        api.extend("s", trials, results=results)


@pytest.mark.parametrize("trials", ["many", "-1", "1.5", "", "+", "++2", "²"])
def test_an_extension_is_a_number(sweep: SweepFolder, results: Path, trials: str) -> None:
    with pytest.raises(UsageError, match="give a number"):
        api.extend("s", trials, results=results)


def test_a_sweep_without_a_search_cannot_be_extended(results: Path, driver: InlineDriver) -> None:
    new_sweep(results, checked_job(quick_job(), "quick.yaml"))
    with pytest.raises(SpecError, match="all would be equal without search.space"):
        api.extend("s", "+1", results=results)


# Fork.


def test_a_fork_shares_what_comes_before_it(sweep: SweepFolder, results: Path, driver: InlineDriver) -> None:
    api.fork("s", 2, after="grow", overrides=["cycle.learn.new_head_lr_multiplier=4"], results=results)
    proposal, record = sweep.proposals()[4], sweep.trials()[4]
    parent = sweep.proposals()[2]
    assert (proposal.proposer, proposal.of, proposal.seed) == ("fork", 2, parent.seed)
    assert proposal.values == {**parent.values, "cycle.learn.new_head_lr_multiplier": 4}
    assert record.status == "COMPLETE" and driver.ran == [(4, "learn")]
    ours, theirs = outcomes(sweep, 4), outcomes(sweep, 2)
    assert ours[:4] == theirs[:4] and ours[4]["key"] != theirs[4]["key"]
    alone = new_sweep(results, search_job(cycle__learn__new_head_lr_multiplier=4.0), "alone")
    alone.add_proposal(parent)
    driver(alone, alone.job(), marks(alone))
    assert ours == outcomes(alone, 2), "as if it had been run alone"


def test_a_fork_does_not_count_as_one_of_the_search(sweep: SweepFolder, results: Path, driver: InlineDriver) -> None:
    api.fork("s", 1, after="grow", overrides=["cycle.learn.lr=2e-3"], results=results)
    api.extend("s", "+1", results=results)
    assert sorted(sweep.trials()) == [1, 2, 3, 4, 5]


def test_a_fork_after_the_last_phase_goes_on_with_another_cycle(
    sweep: SweepFolder, results: Path, driver: InlineDriver
) -> None:
    api.fork("s", 1, after="learn", overrides=["cycle.cycles=2"], results=results)
    assert [phase for _, phase in driver.ran] == ["prune", "measure", "grow", "learn"]
    with pytest.raises(SpecError, match="changes phase 'grow', which is before the fork"):  # of both cycles
        api.fork("s", 4, after="prune@2", overrides=["cycle.grow.ratio=0.9"], results=results)


def test_a_fork_of_another_strategy_leaves_the_old_ones_options(results: Path, driver: InlineDriver) -> None:
    space = {
        "cycle.prune.strategy": {"choice": ["entropy"]},
        "cycle.prune.direction": {"choice": ["low"], "when": {"cycle.prune.strategy": "entropy"}},
    }
    new_sweep(results, search_job(trials=1, search={"space": space, "trials": 1}))
    folder = api.resume("s", results=results)
    api.fork("s", 1, after="baseline", overrides=["cycle.prune.strategy=magnitude"], results=results)
    assert folder.proposals()[2].values == {"cycle.prune.strategy": "magnitude"}
    assert folder.trials()[2].status == "COMPLETE"


@pytest.mark.parametrize(
    ("after", "settings", "key", "said"),
    [
        ("grow", ["cycle.prune.level=0.4"], "cycle.prune.level = 0.4",
         "changes phase 'prune', which is before the fork: fork after 'baseline' instead"),
        ("grow", ["cycle.learn.lr=2e-3", "cycle.grow.ratio=0.1"], "cycle.grow.ratio = 0.1",
         "changes phase 'grow', which is before the fork: fork after 'measure' instead"),
        ("prune", ["cycle.baseline.lr=1e-4"], "cycle.baseline.lr = 0.0001", "changes phase 'baseline', .* new sweep"),
        ("grow", ["data.seq_len=64"], "data.seq_len = 64", "changes phase 'baseline'"),
        ("grow", ["seed=3"], "seed = 3", "is no part of a trial"),
        ("grow", ["search.trials=30"], "search.trials = 30", "is no part of a trial"),
        ("groww", ["cycle.learn.lr=2e-3"], "groww", "Did you mean 'grow'.* Known: baseline, grow, learn"),
        ("grow@2", ["cycle.learn.lr=2e-3"], "grow@2", "no 'grow@2'"),
        ("grow", ["cycle.learn.lr=-1"], "cycle.learn.lr = -1", "greater than 0"),
        ("grow", ["cycle.learn.speed=1"], "cycle.learn.speed = 1", "unknown key"),
        ("learn", ["cycle.learn.lr=2e-3"], "cycle.learn.lr = 0.002", "changes phase 'learn'"),
        ("grow", [], "", "say what the fork does otherwise"),
        ("grow", ["nonsense"], "nonsense", "write it as key=value"),
        ("grow", ["cycle.level_escalation=0.1"], "cycle.level_escalation = 0.1", "would be trial 1 itself"),
    ],
)  # fmt: skip
def test_a_fork_that_cannot_be_is_refused(
    sweep: SweepFolder, results: Path, after: str, settings: list[str], key: str, said: str
) -> None:
    plans = (sweep.path / "plans.jsonl").read_bytes()
    with pytest.raises(SpecError, match=said) as error:
        api.fork("s", 1, after=after, overrides=settings, results=results)
    assert len(error.value.faults) == 1 and refusal(error).startswith("--"), refusal(error)
    assert key in refusal(error)
    assert (sweep.path / "plans.jsonl").read_bytes() == plans


def test_a_fork_of_no_trial_is_refused(sweep: SweepFolder, results: Path) -> None:
    with pytest.raises(ArchiveError, match="has no trial 9. Its trials: 1, 2, 3"):
        api.fork("s", 9, after="grow", overrides=["cycle.learn.lr=2e-3"], results=results)


# Retry.


def test_what_failed_is_retried_from_its_last_phase(results: Path, driver: InlineDriver) -> None:
    driver.fail = {2: 3}
    new_sweep(results, search_job())
    folder = api.resume("s", results=results)
    assert folder.trials()[2].status == "FAILED"
    before = folder.trials()
    driver.fail, driver.ran = {}, []
    api.retry("s", results=results)
    after = SweepFolder.open(results, "s").trials()
    assert {trial: record.status for trial, record in after.items()} == dict.fromkeys((1, 3, 2), "COMPLETE")
    assert (after[1], after[3]) == (before[1], before[3])
    assert driver.ran == [(2, "grow"), (2, "learn")]
    assert [line.trial for line in folder.endings()] == [1, 2, 3, 2, 2], "nothing is ever taken away"


def test_only_what_is_named_is_retried(sweep: SweepFolder, results: Path) -> None:
    for statuses, said in ((["FAILED"], "is FAILED"), (["FAILED", "DIVERGED"], "is FAILED or DIVERGED")):
        with pytest.raises(ArchiveError, match=f"no trial that {said}: nothing to retry"):
            api.retry("s", statuses=statuses, results=results)  # type: ignore[arg-type]


def test_a_reopened_trial_has_no_record_until_it_ends_again(sweep: SweepFolder) -> None:
    record = sweep.trials()[2]
    sweep.reopen(2)
    assert sorted(SweepFolder(sweep.path).trials()) == [1, 3]
    sweep.add_trial(record)
    assert sorted(sweep.trials()) == [1, 2, 3]


# Stop.


def test_a_sweep_that_does_not_run_cannot_be_stopped(sweep: SweepFolder, results: Path) -> None:
    assert api.stop("s", results=results) is False
    assert not sweep.stop_requested()


def test_stop_waits_until_the_driver_has_let_go(
    sweep: SweepFolder, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "POLL_S", 0.01)
    waited: list[float] = []
    driving = threading.Event()

    def drive() -> None:
        lock = sweep.lock()
        driving.set()
        for _ in range(2):  # the first request is taken for an old one, and cleared away
            while not sweep.stop_requested():
                time.sleep(0.01)
            sweep.withdraw_stop()
        lock.release()

    thread = threading.Thread(target=drive)
    thread.start()
    driving.wait()
    assert api.stop("s", results=results, waiting=waited.append) is True
    thread.join()
    assert len(waited) >= 2 and waited == sorted(waited)
    assert not sweep.running() and not sweep.stop_requested()


def test_an_old_request_does_not_stop_the_next_session(results: Path, driver: InlineDriver) -> None:
    folder = new_sweep(results, search_job())
    folder.request_stop()
    api.resume("s", results=results)
    assert sorted(folder.trials()) == [1, 2, 3] and not folder.stop_requested()


def test_a_stopped_sweep_goes_on_where_it_was(results: Path, driver: InlineDriver, tmp_path: Path) -> None:
    folder = new_sweep(results, search_job())

    class Asked(SweepFolder):
        def add_phase(self, record: PhaseRecord) -> None:
            super().add_phase(record)
            if (record.trial, record.phase) == (2, "prune"):
                self.request_stop()

    driver(Asked(folder.path), folder.job(), marks(folder))
    assert sorted(folder.trials()) == [1]
    api.resume("s", results=results)
    whole = new_sweep(tmp_path / "whole", search_job())
    api.resume("s", results=tmp_path / "whole")
    for trial in (1, 2, 3):
        assert outcomes(folder, trial) == outcomes(whole, trial)


# Changing a job.


def test_changing_nothing_is_the_same_job() -> None:
    job = search_job()
    assert lifecycle.changed(job, []) is job


def test_a_job_that_cannot_be_written_whole_stays(
    sweep: SweepFolder, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (sweep.path / "job.yaml").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            api.extend("s", "+1", results=results)
    assert (sweep.path / "job.yaml").read_bytes() == before
    assert check_job(sweep.job().spec.resolved(), "x").spec == sweep.job().spec
