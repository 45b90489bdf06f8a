"""A sweep goes on with the code that it was begun with, or with another one that was accepted: never with a mixture."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.inline import InlineDriver, new_sweep, search_job

from raysweep import api
from raysweep.contracts import Report
from raysweep.errors import ArchiveError
from raysweep.job import code, plan
from raysweep.job.plan import Fingerprints
from raysweep.records.folder import SweepFolder
from raysweep.reports.live.progress import Silent
from raysweep.reports.summary import sweep_state, trial_state
from raysweep.sweep.code import changes, code_of
from raysweep.sweep.evidence import Evidence
from raysweep.sweep.invariants import INVARIANTS


class Watcher(Silent):
    """Keeps what it is told of changed code."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def code_changed(self, changes: Any) -> None:
        self.told += changes


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> InlineDriver:
    driver = InlineDriver()
    monkeypatch.setattr("raysweep.cluster.driver.run_sweep", driver)
    return driver


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """One trial that has ended, and one that failed after its second phase."""
    folder = new_sweep(tmp_path_factory.mktemp("begun"), search_job(trials=2))
    driver = InlineDriver()
    driver.fail = {2: 2}
    driver(folder, folder.job(), Fingerprints(**folder.environment()["fingerprints"]))
    return folder


@pytest.fixture
def sweep(begun: SweepFolder, tmp_path: Path, driver: InlineDriver) -> SweepFolder:
    """A copy of the one that has begun."""
    shutil.copytree(begun.path, tmp_path / "s")
    return SweepFolder.open(tmp_path, "s")


@pytest.fixture
def other_code(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:  # after the sweep has begun
    found = {**code.core(), "trial/acts.py": "another digest"}
    monkeypatch.setattr(code, "core", lambda: found)


def contents(folder: SweepFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file() and path.name != ".lock"}


@pytest.mark.usefixtures("other_code")
@pytest.mark.parametrize("command", ["resume", "extend", "fork", "retry"])
def test_no_command_goes_on_with_other_code_unasked(sweep: SweepFolder, driver: InlineDriver, command: str) -> None:
    before = contents(sweep)
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "resume": (("s",), {}),
        "extend": (("s", "+1"), {}),
        "fork": (("s", 1), {"after": "grow", "overrides": ["cycle.learn.lr=0.002"]}),
        "retry": (("s",), {}),
    }
    given, named = arguments[command]
    with pytest.raises(ArchiveError, match=r"Changed: trial/acts.py\. Put that code back, or .*--accept-new-code"):
        getattr(api, command)(*given, results=sweep.path.parent, **named)
    assert contents(sweep) == before and driver.ran == []


@pytest.mark.usefixtures("other_code")
def test_accepted_code_runs_what_is_left_under_keys_of_its_own(sweep: SweepFolder, driver: InlineDriver) -> None:
    first, keys_before = sweep.trials()[1], {record.key for record in sweep.phases()}
    watcher = Watcher()
    api.retry("s", results=sweep.path.parent, accept_new_code=True, observer=watcher)
    assert watcher.told == ["trial/acts.py"]
    ended = sweep.trials()
    assert ended[1] == first and ended[2].status == "COMPLETE"
    assert not set(ended[2].phases) & keys_before, "nothing of the other code's phases was taken"
    assert {label for trial, label in driver.ran if trial == 2} == {"baseline", "prune", "measure", "grow", "learn"}
    api.extend("s", "+1", results=sweep.path.parent)  # accepted once is enough
    assert sorted(sweep.trials()) == [1, 2, 3]


@pytest.mark.usefixtures("other_code")
def test_a_trial_that_went_on_with_other_code_shows_the_phases_of_its_result(sweep: SweepFolder) -> None:
    api.retry("s", results=sweep.path.parent, accept_new_code=True)
    ran = [record for record in sweep.phases() if record.trial == 2]
    shown = trial_state(sweep, 2)["phases"]
    assert len(ran) > len(shown) == 5 and [phase["key"] for phase in shown] == list(sweep.trials()[2].phases)
    assert sweep_state(sweep)["trials"][1]["perplexity"]["baseline"] == shown[0]["perplexity"]


@pytest.mark.usefixtures("other_code")
def test_a_trial_that_begins_again_reports_anew_and_breaks_no_invariant(sweep: SweepFolder) -> None:
    report = Report(trial=2, phase="learn", cycle=1, step=2, flops=1.0, share=0.5, loss=3.0)
    for trial in (1, 2):
        sweep.add_report(dataclasses.replace(report, trial=trial))
    sweep.reopen(2)
    api.resume("s", results=sweep.path.parent, accept_new_code=True)
    assert sorted(sweep.reports()) == [1], "what trial 2 reported under the other code counts no more"
    assert len([record for record in sweep.phases() if record.trial == 2]) > 5
    assert list(INVARIANTS["heads come and go by decisions alone"](Evidence.read(sweep))) == []


@pytest.mark.usefixtures("other_code")
def test_what_code_a_sweep_ran_is_on_record(sweep: SweepFolder) -> None:
    before = sweep.environment()["code"]
    api.retry("s", results=sweep.path.parent, accept_new_code=True)
    about = sweep.environment()
    assert about["code"]["trial/acts.py"] == "another digest" and about["earlier_code"] == [before]
    assert before["strategies/prune/taylor.py"] and before["torch"] == plan.versions()["torch"]


def test_a_sweep_without_a_record_of_its_code_is_not_taken_for_the_same(sweep: SweepFolder) -> None:
    about = sweep.environment()
    del about["code"]
    (sweep.path / "env.json").write_text(json.dumps(about))
    with pytest.raises(ArchiveError, match="kept no record of its code"):
        api.resume("s", results=sweep.path.parent)
    api.resume("s", results=sweep.path.parent, accept_new_code=True)
    assert sweep.environment()["code"] == code_of(sweep.job(), [p.values for p in sweep.proposals().values()])


def test_a_package_is_named_with_both_versions(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**plan.versions(), "transformers": "9.9"}
    monkeypatch.setattr("raysweep.sweep.code.versions", lambda: found)
    with pytest.raises(ArchiveError, match=rf"Changed: transformers {plan.versions()['transformers']} -> 9\.9\."):
        api.resume("s", results=sweep.path.parent)


def test_strategies_that_a_sweep_never_names_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    job = search_job()
    named = {file for file in code_of(job) if file.startswith("strategies/")}
    assert named == {
        "strategies/prune/taylor.py",
        "strategies/grow/gradient_sensitivity.py",
        "strategies/init/zero_output.py",
    }
    fork = {"cycle.grow.strategy": "random"}
    assert "strategies/grow/random.py" in code_of(job, [fork])
    assert changes(code_of(job), code_of(job, [fork])) == [], "a fork brings one along: that is no change"
    changed = {**code_of(job, [fork]), "strategies/grow/random.py": "x"}
    assert changes(code_of(job, [fork]), changed) == ["strategies/grow/random.py"]


def test_files_that_come_or_go_are_changes() -> None:
    now = code_of(search_job())
    without = {file: mark for file, mark in now.items() if file != "trial/acts.py"}
    assert changes(without, now) == ["trial/acts.py"] == changes(now, without)
    assert changes({**now, "trial/gone.py": "x"}, now) == ["trial/gone.py"]


def test_choices_of_a_space_and_control_arms_count() -> None:
    space = {"cycle.prune.strategy": {"choice": ["taylor", "fisher"]}, "cycle.prune.level": {"choice": [0.2, 0.3]}}
    job = search_job(search={"space": space, "trials": 2, "controls": ["random_random", "rewind"]})
    files = {file.removeprefix("strategies/") for file in code_of(job) if file.startswith("strategies/")}
    assert files >= {"prune/taylor.py", "prune/fisher.py", "prune/random.py", "grow/random.py", "init/rewind.py"}
