"""Sweeps on a real cluster: each trial runs once, its numbers depend on nothing but its plan, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from raysweep import api
from raysweep.errors import ArchiveError, ClusterError, SpecError
from raysweep.records.environment import usable_cores
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord, TrialRecord
from raysweep.reports.live.progress import Silent
from raysweep.sweep.invariants import check

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

CPUS = 6  # of the cluster
TRIALS = 4
PHASES = ["baseline", "prune", "measure", "grow", "learn"]
CHECKPOINT_EVERY = 5
JOB: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "gpt2-pico"},
    "data": {"name": "python-docs", "seq_len": 16, "eval_tokens": 256, "probe_windows": 4},
    "training": {"batch_size": 4},
    "cycle": {
        "baseline": {"steps": 40, "lr": 3.0e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "gradient_sensitivity", "ratio": 0.5},
        "learn": {"steps": 40, "lr": 2.0e-3},
    },
    "search": {
        "space": {
            "cycle.prune.strategy": {"choice": ["taylor", "magnitude"]},
            "cycle.prune.level": {"uniform": [0.1, 0.4], "step": 0.1},
            "cycle.learn.lr": {"choice": [1.0e-3, 2.0e-3]},
        },
        "trials": TRIALS,
    },
    "scale": {"workers": 2, "checkpoint_every_steps": CHECKPOINT_EVERY},
}
OF_RAY = {"ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}
PATIENCE_S = 240.0


# What sweeps leave behind.


def outcomes(folder: SweepFolder) -> dict[tuple[int, str], dict[str, Any]]:
    """Return what every phase of every trial came to; no phase may be recorded twice."""
    records = folder.phases()
    found = {(record.trial, record.phase): record.outcome() for record in records}
    assert len(found) == len(records)
    return found


def ends(folder: SweepFolder) -> dict[int, tuple[Any, ...]]:
    """Return how every trial ended; none may have ended twice."""
    lines = read_lines(folder.path / "trials.jsonl")
    records = folder.trials()
    assert len(lines) == len(records)
    return {t: (r.status, r.values, r.seed, r.proposer, r.objective, r.phases) for t, r in records.items()}


def values(folder: SweepFolder) -> dict[int, dict[str, Any]]:
    return {trial: proposal.values for trial, proposal in folder.proposals().items()}


def assert_same(folder: SweepFolder, reference: SweepFolder) -> None:
    """Check that two sweeps came to the same: trials, values and every number of every phase, to the last bit."""
    assert {t: p.values for t, p in folder.proposals().items()} == {
        t: p.values for t, p in reference.proposals().items()
    }
    assert ends(folder) == ends(reference)
    ours, theirs = outcomes(folder), outcomes(reference)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []


def states(folder: SweepFolder) -> list[TrialState]:
    """Return the states of the study's trials."""
    storage = JournalStorage(JournalFileBackend(str(folder.path / "study.journal")))
    return [trial.state for trial in optuna.load_study(storage=storage, study_name="raysweep").trials]


def baselines_run(folder: SweepFolder) -> int:
    return sum(record.phase == "baseline" and not record.reused for record in folder.phases())


def read_lines(path: Path) -> list[str]:
    """Return the whole lines of a file that somebody may be writing."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def titles(processes: list[psutil.Process]) -> list[str]:
    """Return what living processes call themselves."""
    found = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found += process.cmdline()[:1]
        except psutil.Error:
            continue
    return sorted(found)


def sweep_processes() -> list[str]:
    """Return the titles of Ray's processes below us that exist because of a sweep."""
    found = titles(psutil.Process().children(recursive=True))
    return [title for title in found if title.startswith("ray::") and title.split(".")[0] not in OF_RAY]


# Running them.


class Watcher(Silent):
    """Acts when something happens; a worker group is known by its pids."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.retried: list[tuple[int, int]] = []
        self.resumed: list[tuple[int, str, int]] = []
        self.acted: list[Any] = []

    def lane_started(self, pids: list[int]) -> None:
        self.pids = pids

    def trial_retried(self, trial: int, attempt: int) -> None:
        self.retried.append((trial, attempt))

    def phase_resumed(self, trial: int, phase: str, step: int, steps: int) -> None:
        self.resumed.append((trial, phase, step))


def run(address: str, results: Path, *overrides: str, **options: Any) -> SweepFolder:
    job = options.pop("job", JOB)
    return api.run(job, overrides=overrides, address=address, results=results, **options)


@pytest.fixture(scope="module")
def reference(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep of four trials on one lane that nothing disturbed."""
    return run(cluster, tmp_path_factory.mktemp("reference"))


# Undisturbed.


def test_a_sweep_runs_all_trials_in_one_worker_group(reference: SweepFolder) -> None:
    assert len(reference.lanes()) == 1
    assert len(set(reference.lanes()[0].pids)) == 2
    assert sorted(reference.trials()) == [1, 2, 3, 4]


def test_records_are_complete(reference: SweepFolder) -> None:
    phases = reference.phases()
    for trial, record in reference.trials().items():
        mine = [phase for phase in phases if phase.trial == trial]
        assert [phase.phase for phase in mine] == PHASES
        assert [phase.key for phase in mine] == record.phases
        assert (record.status, record.attempts, record.error) == ("COMPLETE", 1, None)
        assert record.objective == mine[-1].loss
        assert record.values == reference.proposals()[trial].values
        assert [point["step"] for point in mine[-1].curve] == [10, 20, 30, 40]
        assert (reference.path / "tensorboard" / str(trial)).is_dir()
    assert states(reference) == [TrialState.COMPLETE] * TRIALS


def test_the_baseline_is_trained_once_and_whatever_is_equal_is_reused(reference: SweepFolder) -> None:
    assert baselines_run(reference) == 1
    seen: set[str] = set()
    for record in reference.phases():
        assert record.reused == (record.key in seen), f"{record.phase} of trial {record.trial}"
        seen.add(record.key)


def test_nothing_of_a_sweep_is_left_on_the_cluster(reference: SweepFolder, cluster: str) -> None:
    import ray
    from ray.util.state import list_actors

    wait_until(lambda: not sweep_processes(), f"these are gone: {sweep_processes()}")
    ray.init(cluster, namespace="raysweep", log_to_driver=False, logging_level="ERROR")
    try:
        groups = ray.util.placement_group_table().values()
        assert [group for group in groups if group["state"] != "REMOVED"] == []
        alive = [actor.class_name for actor in list_actors(filters=[("state", "!=", "DEAD")])]
        assert [name for name in alive if f"ray::{name}" not in OF_RAY] == []
        wait_until(lambda: ray.available_resources().get("CPU") == CPUS, "all processors are free")
    finally:
        ray.shutdown()
    assert not (reference.path / "ray").exists()


def test_resuming_a_finished_sweep_does_nothing(reference: SweepFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(reference.path, tmp_path / "results" / reference.name))
    before = {path: path.read_bytes() for path in copy.glob("*.jsonl")}
    done = subprocess.run(
        command("resume", copy.name, results=copy.parent, address="127.0.0.2:1"),  # where no cluster is: none is needed
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in copy.glob("*.jsonl")} == before


def test_a_job_larger_than_the_cluster_is_refused_before_anything_starts(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"8 CPUs, but there are {CPUS}"):
        run(cluster, tmp_path, "scale.lanes=4", name="large")
    folder = SweepFolder(tmp_path / "large")
    assert (folder.proposals(), folder.lanes()) == ({}, [])
    assert sweep_processes() == []


def test_an_address_where_no_cluster_is_is_named(ray_environment: None, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"127\.0\.0\.2:1"):
        run("127.0.0.2:1", tmp_path)


# How trials end.


@pytest.fixture(scope="module")
def mixed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep in which some trials can only diverge, and some ask for more heads than may go."""
    space = {
        "cycle.learn.lr": {"choice": [1.0e-3, 1.0e9]},
        "cycle.prune.level": {"choice": [0.2, 0.97]},
    }
    job = JOB | {"search": {"space": space, "trials": 6, "sampler": {"name": "random"}}}
    return run(cluster, tmp_path_factory.mktemp("mixed"), job=job)


def expected_end(drawn: dict[str, Any]) -> str:
    if drawn["cycle.prune.level"] == 0.97:
        return "FAILED"
    return "DIVERGED" if drawn["cycle.learn.lr"] == 1.0e9 else "COMPLETE"


@pytest.mark.slow
def test_each_trial_ends_as_its_values_deserve(mixed: SweepFolder) -> None:
    expected = {trial: expected_end(drawn) for trial, drawn in values(mixed).items()}
    assert set(expected.values()) == {"COMPLETE", "DIVERGED", "FAILED"}, "shows too little; try another seed"
    assert {trial: record.status for trial, record in mixed.trials().items()} == expected
    assert len(mixed.lanes()) == 1, "none of this is a reason to restart workers"
    assert all(record.attempts == 1 for record in mixed.trials().values())


@pytest.mark.slow
def test_a_trial_that_diverges_says_where_and_keeps_what_it_reached(mixed: SweepFolder) -> None:
    for record in mixed.trials().values():
        if record.status == "DIVERGED":
            assert record.objective is None and record.error is not None and "step" in record.error
            assert [phase.phase for phase in mixed.phases() if phase.trial == record.trial] == PHASES[:-1]


@pytest.mark.slow
def test_a_budget_that_cannot_be_met_fails_with_its_message(mixed: SweepFolder) -> None:
    for record in mixed.trials().values():
        if record.status == "FAILED":
            assert record.objective is None and record.error is not None and "min_heads_per_layer" in record.error
            assert [phase.phase for phase in mixed.phases() if phase.trial == record.trial] == PHASES[:1]


@pytest.mark.slow
def test_the_study_learns_which_trials_did_not_complete(mixed: SweepFolder) -> None:
    told = {
        trial: TrialState.COMPLETE if record.status == "COMPLETE" else TrialState.FAIL
        for trial, record in mixed.trials().items()
    }
    assert dict(enumerate(states(mixed), start=1)) == told


# The same sweep in other ways.


@pytest.mark.slow
def test_the_same_seed_gives_the_same_records(reference: SweepFolder, cluster: str, tmp_path: Path) -> None:
    assert_same(run(cluster, tmp_path), reference)


@pytest.mark.slow
def test_without_sharing_everything_is_trained_anew_and_comes_out_equal(
    reference: SweepFolder, cluster: str, tmp_path: Path
) -> None:
    folder = run(cluster, tmp_path, sharing=False)
    assert baselines_run(folder) == TRIALS
    assert not any(record.reused for record in folder.phases())
    assert_same(folder, reference)


@pytest.mark.slow
def test_a_worker_group_for_each_trial_comes_to_the_same_as_a_lane(
    reference: SweepFolder, cluster: str, tmp_path: Path
) -> None:
    folder = run(cluster, tmp_path, "scale.isolation=process")
    assert [entry.lane for entry in folder.lanes()] == [f"trial-{trial}" for trial in range(1, TRIALS + 1)]
    assert len({entry.group for entry in folder.lanes()}) == TRIALS
    assert_same(folder, reference)
    wait_until(lambda: not sweep_processes(), "its processes are gone")


@pytest.mark.slow
def test_lanes_that_take_every_processor_run_each_trial_once_and_the_baseline_once(
    reference: SweepFolder, cluster: str, tmp_path: Path
) -> None:
    folder = run(cluster, tmp_path, f"scale.lanes={CPUS // 2}")
    lanes = [entry.lane for entry in folder.lanes()]  # a lane that is ready too late is not among them
    assert lanes and len(set(lanes)) == len(lanes)
    assert baselines_run(folder) == 1
    assert_same(folder, reference)


# Workers die.


class KillInLearn(Watcher):
    """Kills rank 1 in the middle of a trial's learn phase, once."""

    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None:
        if (trial, phase, step) == (2, "learn", 20) and not self.acted:
            os.kill(self.pids[1], signal.SIGKILL)
            self.acted.append(step)


@pytest.mark.slow
def test_a_killed_worker_costs_one_checkpoint_interval_at_most(
    reference: SweepFolder, cluster: str, tmp_path: Path
) -> None:
    watcher = KillInLearn()
    folder = run(cluster, tmp_path, observer=watcher)
    assert watcher.acted == [20] and watcher.retried == [(2, 2)]
    assert {trial: record.attempts for trial, record in folder.trials().items()} == {1: 1, 2: 2, 3: 1, 4: 1}
    ((trial, phase, step),) = watcher.resumed
    assert (trial, phase) == (2, "learn") and 20 - CHECKPOINT_EVERY <= step < 40
    assert len(folder.lanes()) == 2
    assert_same(folder, reference)


class StopInLearn(Watcher):
    """Stops rank 1 (SIGSTOP) in the middle of a trial's learn phase, once: no process dies, and none gets on."""

    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None:
        if (trial, phase, step) == (2, "learn", 20) and not self.acted:
            os.kill(self.pids[1], signal.SIGSTOP)
            self.acted.append(step)

    def lane_silent(self, lane: str, seconds: float, lost: bool) -> None:
        if lost:
            self.acted.append(lane)


@pytest.mark.slow
def test_a_stopped_worker_costs_its_lane_and_no_trial(reference: SweepFolder, cluster: str, tmp_path: Path) -> None:
    watcher = StopInLearn()
    folder = run(cluster, tmp_path, "scale.lane_timeout=15", observer=watcher)
    assert watcher.acted == [20, "lane-0"] and watcher.retried == [(2, 2)]
    assert len(folder.lanes()) == 2
    assert_same(folder, reference)
    wait_until(lambda: not sweep_processes(), "its processes are gone")


class KillBetweenTrials(Watcher):
    """Kills rank 1 when the second trial has ended, which is when its lane waits for the third."""

    def trial_finished(self, record: TrialRecord) -> None:
        if record.trial == 2:
            os.kill(self.pids[1], signal.SIGKILL)
            self.acted.append(record.trial)


@pytest.mark.slow
def test_a_worker_killed_between_trials_ends_none(reference: SweepFolder, cluster: str, tmp_path: Path) -> None:
    watcher = KillBetweenTrials()
    folder = run(cluster, tmp_path, observer=watcher)
    assert watcher.acted == [2] and len(folder.lanes()) == 2
    attempts = {trial: record.attempts for trial, record in folder.trials().items()}
    assert attempts.pop(3) in (1, 2)  # it may have been on its way
    assert set(attempts.values()) == {1}
    assert_same(folder, reference)


@pytest.mark.slow
def test_a_trial_that_always_kills_its_workers_fails_and_the_sweep_goes_on(cluster: str, tmp_path: Path) -> None:
    space = {"cycle.prune.strategy": {"choice": ["taylor", "deadly.exits", "deadly.raises"]}}
    search = {"space": space, "trials": 5, "sampler": {"name": "random"}}
    folder = run(cluster, tmp_path, "scale.max_attempts=2", job=JOB | {"search": search})
    asked = {trial: drawn["cycle.prune.strategy"] for trial, drawn in values(folder).items()}
    assert set(asked.values()) == {"taylor", "deadly.exits", "deadly.raises"}, "shows too little; try another seed"
    for trial, record in folder.trials().items():
        if asked[trial] == "taylor":
            assert (record.status, record.attempts) == ("COMPLETE", 1)
        else:
            assert (record.status, record.attempts, record.objective) == ("FAILED", 2, None)
            assert record.error is not None and "gave up after 2 attempts" in record.error
        if asked[trial] == "deadly.raises":
            assert record.error is not None
            assert "RuntimeError: a fault of the strategy" in record.error, "says what the strategy raised"
    assert sorted(folder.trials()) == [1, 2, 3, 4, 5]


# The driver is interrupted.


class Interrupt(Watcher):
    """Does what Ctrl-C does, once the second trial learns."""

    def step_logged(self, trial: int, phase: str, step: int, steps: int, loss: float) -> None:
        if (trial, phase, step) == (2, "learn", 10) and not self.acted:
            self.acted.append(step)
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_the_cluster_clean_and_can_be_resumed(
    reference: SweepFolder, cluster: str, tmp_path: Path
) -> None:
    import ray

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        run(cluster, tmp_path, name="cut", observer=Interrupt())
    wait_until(lambda: set(threading.enumerate()) <= before, "its threads have ended")
    assert not ray.is_initialized(), "a thread that was late has started Ray again"
    wait_until(lambda: not sweep_processes(), "its processes are gone")
    folder = api.resume("cut", address=cluster, results=tmp_path)
    assert {trial: record.attempts for trial, record in folder.trials().items()} == {1: 1, 2: 2, 3: 1, 4: 1}
    assert states(folder) == [TrialState.COMPLETE] * TRIALS
    assert_same(folder, reference)


class Breaks(Watcher):
    """Cannot take the news of the second trial."""

    def phase_finished(self, record: PhaseRecord) -> None:
        if record.trial == 2 and record.phase == "prune":
            raise OSError("no space left on device")


@pytest.mark.slow
def test_a_sweep_that_cannot_be_recorded_ends_with_the_reason_and_can_be_resumed(
    reference: SweepFolder, cluster: str, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="no space left"):
        run(cluster, tmp_path, name="full", observer=Breaks())
    folder = api.resume("full", address=cluster, results=tmp_path)
    assert states(folder) == [TrialState.COMPLETE] * TRIALS
    assert_same(folder, reference)


# The command line, on a cluster of its own.


def command(name: str, target: object, *, results: Path, address: str | None = None) -> list[str]:
    options = ["--results", str(results), *(["--address", address] if address else [])]
    return [sys.executable, "-m", "raysweep", name, str(target), *options]


class Driver:
    """A raysweep process with a Ray cluster of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._log = log.open("a")
        self._process = subprocess.Popen(arguments, stdout=self._log, stderr=self._log, start_new_session=True)
        self._family: set[psutil.Process] = set()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Poll until a condition holds; the driver must not end before."""

        def holds() -> bool:
            assert self._process.poll() is None or condition(), f"ended before {what}"
            return bool(condition())

        wait_until(holds, what)

    def signal(self, number: int) -> int:
        """Send a signal, wait for the end of the driver and of its workers, and return its exit code."""
        self._family |= set(psutil.Process(self._process.pid).children(recursive=True))
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self._process.wait(PATIENCE_S)
        wait_until(lambda: not self._alive(), f"the processes of a dead driver are gone: {self._alive()}")
        return code

    def _alive(self) -> list[str]:
        family = titles(list(self._family))
        workers = [title for title in family if title.startswith("ray::") and title.split(".")[0] not in OF_RAY]
        return workers + [title for title in family if title.endswith(("raylet", "gcs_server"))]

    def close(self) -> None:
        if self._process.poll() is None:
            self._family |= set(psutil.Process(self._process.pid).children(recursive=True))
            self._process.kill()
            self._process.wait()
        for process in self._family:
            try:
                process.kill()
            except psutil.Error:
                continue
        self._log.close()


@contextmanager
def driver(arguments: list[str], log: Path) -> Iterator[Driver]:
    started = Driver(arguments, log)
    try:
        yield started
    finally:
        started.close()


needs_two_cores = pytest.mark.skipif(usable_cores() < 2, reason="a local cluster for two workers needs two processors")


@pytest.fixture
def job_file(ray_environment: None, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(JOB))  # JSON is YAML
    return path


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("kills", [1, 3])
def test_a_driver_killed_at_any_moment_loses_nothing(
    kills: int, reference: SweepFolder, job_file: Path, tmp_path: Path
) -> None:
    """During the baseline, between two trials, and while one learns; each a random moment later than it begins."""
    results, log = tmp_path / "results", tmp_path / "log"
    folder = SweepFolder(results / "killed")
    delays = random.Random(7)

    def last_phase() -> str:
        lines = read_lines(folder.path / "phases.jsonl")
        return json.loads(lines[-1])["phase"] if lines else ""

    moments: list[tuple[str, Callable[[], object], float]] = [
        ("the baseline runs", lambda: read_lines(folder.path / "lanes.jsonl"), 0.8),
        ("a trial has ended", lambda: read_lines(folder.path / "trials.jsonl"), 0.2),
        ("a trial learns", lambda: last_phase() == "grow", 0.5),
    ]
    arguments = [*command("run", job_file, results=results), "--name", folder.name]
    for what, condition, at_most_s in moments[-kills:]:
        with driver(arguments, log) as running:
            running.wait_until(condition, what)
            time.sleep(delays.uniform(0, at_most_s))
            assert running.signal(signal.SIGKILL) == -signal.SIGKILL, log.read_text()
        arguments = command("resume", folder.name, results=results)
    with driver(arguments, log) as last:
        assert last.wait() == 0, log.read_text()
    assert sorted(folder.trials()) == list(range(1, TRIALS + 1))
    assert sum(record.attempts for record in folder.trials().values()) > TRIALS
    assert_same(folder, reference)
    assert states(folder) == [TrialState.COMPLETE] * TRIALS
    assert check(folder) == []


@pytest.mark.slow
@needs_two_cores
def test_ctrl_c_says_how_to_go_on_and_meanwhile_nobody_else_may(job_file: Path, tmp_path: Path) -> None:
    results, log = tmp_path / "results", tmp_path / "log"
    arguments = [*command("run", job_file, results=results), "--name", "cut"]
    with driver(arguments, log) as running:
        running.wait_until(lambda: read_lines(results / "cut" / "trials.jsonl"), "a trial has ended")
        with pytest.raises(ArchiveError, match="being run by another process"):
            api.resume("cut", results=results)
        assert running.signal(signal.SIGINT) == 130
    said = log.read_text()
    assert "raysweep resume cut" in said
    assert "Traceback" not in said
