"""The command line as people and scripts meet it: help, plans, what is printed where, and what is left alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from support.jobs import checked_job
from support.sweeps import (
    ENTROPY,
    JOB,
    TAYLOR,
    WHOLE,
    add_trial,
    contents,
    finished_sweep,
    job_mapping,
    make_sweep,
    phase_record,
    trial_record,
)

from raysweep import api
from raysweep.cli import main
from raysweep.cli.listing import STRATEGIES
from raysweep.cluster import ownership
from raysweep.cluster.doctor import Check
from raysweep.job.plan import Fingerprints
from raysweep.job.shipped import shipped_files
from raysweep.job.yamlfile import dump_mapping
from raysweep.records import atomic_folders as entries
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import Session, Status
from raysweep.sweep import signals
from raysweep.sweep.limits import ASKED
from raysweep.trial.forecast.estimate import estimate
from raysweep.trial.forecast.preflight import Checked

HEAVY = ("torch", "ray", "transformers", "optuna", "pydantic")
COMMANDS = [
    "run", "resume", "extend", "fork", "retry", "stop", "validate", "plan", "list", "copy", "status", "show",
    "tensorboard", "export", "gc", "repair", "unlock", "analyze", "simulate", "help", "schema", "doctor",
]  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYSWEEP_RESULTS", raising=False)
    return tmp_path


def invoke(*arguments: str, **how: Any) -> Result:
    return CliRunner().invoke(main, arguments, **how)


def done(*arguments: str) -> str:
    """Run a command that succeeds and says nothing on stderr; return what it prints."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def from_json(*arguments: str) -> Any:
    return json.loads(done(*arguments, "--json"), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


# Help.


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from raysweep.cli import main
for command in {[[], *([name] for name in COMMANDS)]!r}:
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert not end.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "[]\n")
    assert ran.stdout.count("Usage:") == 1 + len(COMMANDS)


def test_help_is_there_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "raysweep", "--help"], capture_output=True, check=True, timeout=60)
        seconds.append(time.perf_counter() - started)
    with capsys.disabled():
        print(f" [raysweep --help: {min(seconds):.2f} s]", end="")
    assert min(seconds) < 5  # 0.5 s on an idle machine; this only catches what is far off


def test_every_command_stands_in_the_help_with_a_whole_sentence() -> None:
    text = done("--help")
    assert list(main.commands) == COMMANDS
    for name in COMMANDS:
        line = next(line for line in text.splitlines() if line.startswith(f"  {name} "))
        assert line.endswith("."), line
        assert not line.endswith("..."), line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    options = [parameter for parameter in main.commands[name].params if isinstance(parameter, click.Option)]
    assert all(option.help for option in options)
    assert done(name, "-h") == done(name, "--help")


def test_options_that_can_be_set_in_the_environment_say_so() -> None:
    text = done("run", "--help")
    assert "RAYSWEEP_RESULTS" in text
    assert "RAY_ADDRESS" in text


def test_the_version_is_printed() -> None:
    assert done("--version").startswith("raysweep")


# Read-only commands.


def interrupted(results: Path) -> SweepFolder:
    folder = make_sweep(results, job=job_mapping(trials=6))
    add_trial(folder, 1, perplexities={**WHOLE, "prune@2": 60.0, "measure@2": 60.0, "grow@2": 60.0, "learn@2": 39.0})
    add_trial(folder, 2, perplexities={"baseline": 40.0}, status="DIVERGED", reused=["baseline"], error="loss is nan")
    add_trial(folder, 3, perplexities={"baseline": 40.0}, status="STOPPED", reused=["baseline"])
    add_trial(folder, 4, perplexities={"baseline": 40.0, "prune": float("inf")}, status=None, reused=["baseline"])
    return folder


def not_begun(results: Path) -> SweepFolder:
    return make_sweep(results)


def without_search(results: Path) -> SweepFolder:
    folder = make_sweep(results, job={key: value for key, value in JOB.items() if key != "search"})
    add_trial(folder, 1, values={})
    return folder


@pytest.mark.parametrize("make", [finished_sweep, interrupted, not_begun, without_search])
def test_looking_at_a_sweep_writes_nothing_into_it(make: Callable[[Path], SweepFolder], workplace: Path) -> None:
    folder = make(Path("results"))
    before = contents(workplace)
    trials = [str(trial) for trial in folder.proposals()]
    for command in (["status"], ["show"], *(["show", trial] for trial in trials)):
        name, *rest = command
        text = done(name, folder.name, *rest)
        assert text.splitlines()[-1].startswith("next:  raysweep ")
        assert from_json(name, folder.name, *rest)["sweep"] == folder.name
    done("list")
    from_json("list")
    assert contents(workplace) == before


def test_status_and_show_say_the_same() -> None:
    finished_sweep(Path("results"))
    assert done("status", "heads-1") == done("show", "heads-1")
    assert from_json("status", "heads-1") == from_json("show", "heads-1")


def test_a_finished_sweep_ends_with_what_to_look_at() -> None:
    finished_sweep(Path("results"))
    text = done("status", "heads-1")
    assert "best trial 2: perplexity 41.25" in text
    assert "next:  raysweep show heads-1 2 · raysweep tensorboard heads-1 · raysweep retry heads-1 --failed · " in text


def test_a_check_says_of_each_invariant_whether_it_holds() -> None:
    folder = make_sweep(Path("results"))
    text = done("status", "heads-1", "--check")
    assert text.startswith(
        "heads-1   0 of 3 trials ended\n✓ every line of the records can be read\n✓ planned = finished + stopped"
    )
    assert text.endswith("all hold.\nnext:  raysweep status heads-1\n")
    folder.add_phase(phase_record(7, "prune", 50.0))
    result = invoke("status", "heads-1", "--check")
    assert (result.exit_code, result.stderr) == (1, "")
    assert "✗ every record belongs to a proposed trial\n    trials 7 have phases, but were" in result.stdout
    result = invoke("status", "heads-1", "--check", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["sweep"], found["planned"], found["running"]) == (1, "heads-1", 3, False)
    assert found["invariants"]["every record belongs to a proposed trial"]
    assert found["invariants"]["no trial is counted twice"] == []


def test_an_interrupted_sweep_ends_with_how_to_go_on() -> None:
    interrupted(Path("results"))
    text = done("status", "heads-1")
    assert "next:  raysweep resume heads-1 · " in text
    assert "3 of 6 trials ended: 1 complete, 1 diverged, 1 stopped, 1 unfinished" in text
    assert "perplexity (last cycle)" in text


def test_the_next_commands_find_the_sweep_again(monkeypatch: pytest.MonkeyPatch) -> None:
    finished_sweep(Path("my sweeps"))
    there = " --results 'my sweeps'"
    text = done("status", "heads-1", "--results", "my sweeps")
    assert f"raysweep show heads-1 2{there} · raysweep tensorboard heads-1{there} · " in text
    assert f"raysweep status heads-1{there}" in done("show", "heads-1", "2", "--results", "my sweeps")
    monkeypatch.setenv("RAYSWEEP_RESULTS", "my sweeps")
    assert "--results" not in done("status", "heads-1")


def test_json_has_null_where_a_number_is_not_finite() -> None:
    interrupted(Path("results"))
    assert from_json("status", "heads-1")["trials"][3]["perplexity"] == {"baseline": 40.0, "prune": None}
    assert from_json("show", "heads-1", "4")["phases"][1]["perplexity"] is None


def test_one_trial_as_json_holds_its_records() -> None:
    folder = finished_sweep(Path("results"))
    state = from_json("show", "heads-1", "2")
    assert [phase["phase"] for phase in state["phases"]] == list(WHOLE)
    assert state["phases"] == [record.to_dict() for record in folder.phases() if record.trial == 2]


def test_list_prints_one_kind_or_all() -> None:
    assert list(from_json("list", "prune")) == ["prune"]
    text = done("list")
    assert all(kind in text.splitlines() for kind in (*STRATEGIES, "models", "data", "sweeps"))
    assert "  none yet\nnext:  raysweep plan\n" in text
    finished_sweep(Path("results"))
    assert done("list", "sweeps").splitlines()[1:] == [
        "  heads-1  gpt2-nano on python-docs: 3 of 3 trials, best loss 3.7197",
        "next:  raysweep plan · raysweep status heads-1",
    ]


def test_jobs_are_listed_with_what_can_be_done_with_them() -> None:
    text = done("list", "jobs", "--results", "elsewhere")
    assert "  jobs/quickstart.yaml" in text
    assert text.endswith("next:  raysweep plan jobs/quickstart.yaml · raysweep copy jobs/quickstart.yaml\n")
    assert {entry["name"] for entry in from_json("list", "jobs")["jobs"]} == set(shipped_files("jobs"))


def test_a_copied_job_is_named_with_its_space_and_what_to_do_next() -> None:
    assert done("copy", "jobs/quickstart.yaml", "--to", "my jobs").splitlines() == [
        "wrote my jobs/jobs/quickstart.yaml",
        "wrote my jobs/search_spaces/quickstart.yaml",
        "next:  raysweep plan 'my jobs/jobs/quickstart.yaml' · raysweep run 'my jobs/jobs/quickstart.yaml'",
    ]
    assert done("copy", "search_spaces/heads.yaml").splitlines() == [
        "wrote search_spaces/heads.yaml",
        "next:  raysweep plan jobs/quickstart.yaml --set search.space=search_spaces/heads.yaml",
    ]


def test_a_copy_that_is_refused_is_one_error() -> None:
    done("copy", "jobs/quickstart.yaml")
    result = invoke("copy", "jobs/quickstart.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: already here, and never overwritten: jobs/quickstart.yaml. Edit it, or copy with --to another folder.\n"
    )


def test_tensorboard_of_all_sweeps_leaves_out_those_that_never_began(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []

    class Server:
        returncode = 0

        def poll(self) -> int:
            return 0

    def serve(logdir: Path, port: int) -> Server:
        shown.append(sorted(path.name for path in Path(logdir).iterdir()))
        return Server()

    monkeypatch.setattr("raysweep.reports.tensorboard.server.serve", serve)
    (finished_sweep(Path("results"), "begun").path / "tensorboard" / "trial-1").mkdir(parents=True)
    make_sweep(Path("results"), "never")
    result = invoke("tensorboard")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("TensorBoard on begun: http://127.0.0.1:6006")
    assert shown == [["begun"]]
    assert "never" in invoke("tensorboard", "never").stderr


def test_tensorboard_is_ended_with_the_command_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Server:
        def poll(self) -> int | None:
            os.kill(os.getpid(), signal.SIGTERM)
            return None

        def wait(self) -> int:
            told.append("wait")
            return 0

        def terminate(self) -> None:
            told.append("terminate")

    monkeypatch.setattr("raysweep.reports.tensorboard.server.serve", lambda logdir, port: Server())
    (finished_sweep(Path("results")).path / "tensorboard").mkdir()
    assert invoke("tensorboard", "heads-1").exit_code == 0
    assert told == ["terminate", "wait"]


# Plans.

PLAN_FIELDS = {
    "trials", "phases", "phases_shared", "steps", "steps_shared", "parameters", "seconds", "seconds_from",
    "worker_memory_bytes", "data", "disk_bytes", "example", "distinct", "saving", "trials_reusing", "prefixes_reused",
    "stages", "foreseen",
}  # fmt: skip


def write_job(**search: Any) -> str:
    Path("job.yaml").write_text(dump_mapping(job_mapping(**search)))
    return "job.yaml"


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_space_in_which_no_two_trials_share_a_phase_is_told_of(command: str) -> None:
    continuous = {"cycle.prune.level": {"uniform": [0.1, 0.5], "continuous": True}}
    result = invoke(command, write_job(space=continuous))
    assert result.exit_code == 0
    assert result.stderr.startswith("note: cycle.prune.level is continuous, so that no two trials share a phase")


def test_a_plan_is_counted_and_starts_nothing(workplace: Path) -> None:
    job = write_job(space={"cycle.prune.strategy": {"choice": ["taylor"]}})
    found = from_json("plan", job)
    assert set(found) == PLAN_FIELDS
    assert (found["trials"], found["phases"], found["phases_shared"]) == (3, 15, 5)
    assert (found["steps"], found["steps_shared"]) == (420, 140)
    assert [phase["phase"] for phase in found["example"]] == list(WHOLE)
    assert [path.name for path in workplace.iterdir()] == ["job.yaml"]
    train, choose, test = (found["data"]["splits"][name] for name in ("train", "choose", "test"))
    assert (
        train["rows"] > 1000 and choose["rows"] == 64 and (test["rows"], test["files"], test["sample"]) == (0, [], "")
    )
    assert len(train["sample"]) == len(choose["sample"]) == 200 and train["sample"] != choose["sample"]


def test_a_plan_as_a_table_names_the_run_that_it_is_of() -> None:
    text = done("plan", write_job(), "--trials", "2", "--set", "seed=3")
    assert "2 on 1 lane of 1 worker" in text
    assert "(from a matrix product measured here" in text
    assert text.endswith("next:  raysweep run job.yaml --set seed=3 --trials 2\n")
    assert not Path("results").exists()


def test_a_plan_is_judged_by_earlier_sweeps_of_the_same_work() -> None:
    job = write_job(space={"cycle.prune.strategy": {"choice": ["taylor"]}})
    folder = make_sweep(Path("results"), job=job_mapping())
    add_trial(folder, 1)  # 2 s a phase; 140 steps in 4 s, less the 2 s that a phase without steps takes: nothing
    found = from_json("plan", job)
    assert found["seconds_from"] == "5 phases of this model run before"
    assert found["seconds"] == pytest.approx(40 + 5 * 2.0)
    other = from_json("plan", job, "--set", "data.seq_len=64")
    assert "matrix product" in other["seconds_from"]


def test_without_a_job_the_quickstart_that_ships_is_planned() -> None:
    assert from_json("plan", "--trials", "2")["trials"] == 2


# Running, with the sweep itself replaced.


class FakeSweep:
    """Stands for `api.run` and `api.resume`: tells of one trial, and leaves its record."""

    def __init__(self, status: Status = "COMPLETE", interrupt: bool = False) -> None:
        self.status, self.interrupt = status, interrupt
        self.asked: dict[str, Any] = {}

    def __call__(
        self, named: Any, *, observer: Any, results: Path, given: tuple[Any, ...] = (), **asked: Any
    ) -> SweepFolder:
        self.asked = {"named": named, **({"given": given} if given else {}), **asked}
        folder = make_sweep(results, job=job_mapping(trials=1))
        print("Ray has something to say")
        observer.sweep_started(folder, checked_job(job_mapping(trials=1), "job.yaml"), 1)
        phase = phase_record(1, "baseline", 40.0)
        observer.phase_finished(phase)
        if self.interrupt:
            with signals.watched():
                os.kill(os.getpid(), signal.SIGTERM)
            return folder
        add_trial(folder, 1, perplexities={"baseline": 40.0}, status=self.status)
        observer.trial_finished(trial_record(1, self.status, [phase]))
        return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    sweep = FakeSweep()
    for name in ("run", "resume", "extend", "fork", "retry"):
        monkeypatch.setattr(api, name, lambda named, *given, **asked: sweep(named, given=given, **asked))
    return sweep


def test_results_go_to_stdout_and_progress_to_stderr(fake: FakeSweep) -> None:
    result = invoke("run", write_job())
    assert result.exit_code == 0
    assert "best trial 1: perplexity 40.00" in result.stdout
    assert "raysweep show heads-1 1" in result.stdout
    assert "Ray has" not in result.stdout
    assert result.stderr.splitlines() == [
        "Ray has something to say",
        "heads-1   1 trial on 1 lane of 1 worker   python-docs   gpt2-nano",
        "trial 1 (1/1)   baseline ✓   loss 3.6889   best 3.6889 (trial 1)   12.5 s",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_json_of_a_run_reaches_stdout_even_with_a_live_line(fake: FakeSweep, terminal: bool) -> None:
    result = invoke("run", write_job(), "--json", env={"FORCE_COLOR": "1", "TERM": "xterm"} if terminal else {})
    assert ("\x1b[" in result.stderr) == terminal
    assert json.loads(result.stdout)["best"] == 1


def test_run_passes_on_what_it_was_given(fake: FakeSweep) -> None:
    invoke("run", write_job(), "--set", "seed=3", "--set", "seed=4", "--trials", "5", "--name", "x", "--no-sharing",
           "--private", "--address", "ray://there:1", "--results", "elsewhere")  # fmt: skip
    assert fake.asked == {
        "named": Path("job.yaml"), "overrides": ("seed=3", "seed=4"), "trials": 5, "address": "ray://there:1",
        "name": "x", "sharing": False, "private": True,
    }  # fmt: skip
    assert [path.name for path in Path("elsewhere").iterdir()] == ["heads-1"]
    invoke("resume", "heads-2", "--results", "again")
    assert fake.asked == {"named": "heads-2", "overrides": (), "accept_new_code": False, "address": None}


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["resume", "x", "--set", "budget.hours=2", "--set", "scale.lanes=3", "--address", "there:1"],
         {"overrides": ("budget.hours=2", "scale.lanes=3"), "address": "there:1"}),
        (["extend", "x", "--trials", "+8"], {"given": ("+8",), "address": None}),
        (["extend", "x", "--trials", "16", "--address", "there:1"], {"given": ("16",), "address": "there:1"}),
        (["fork", "x", "3", "--after", "prune@2", "--set", "cycle.learn.lr=1e-3", "--set", "cycle.cycles=3"],
         {"given": (3,), "after": "prune@2", "overrides": ("cycle.learn.lr=1e-3", "cycle.cycles=3"), "address": None}),
        (["retry", "x", "--failed"], {"statuses": ["FAILED"], "address": None}),
        (["retry", "x", "--diverged"], {"statuses": ["DIVERGED"], "address": None}),
        (["retry", "x", "--diverged", "--accept-new-code"], {"statuses": ["DIVERGED"], "address": None}),
        (["retry", "x", "--failed", "--diverged"], {"statuses": ["FAILED", "DIVERGED"], "address": None}),
    ],
)  # fmt: skip
def test_commands_of_the_life_cycle_pass_on_what_they_were_given(
    fake: FakeSweep, command: list[str], asked: dict[str, Any]
) -> None:
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert fake.asked == {"named": "x", "accept_new_code": "--accept-new-code" in command, **asked}
    assert "best trial 1" in result.stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["extend", "x"], "--trials"),
        (["fork", "x", "3", "--set", "cycle.learn.lr=1e-3"], "--after"),
        (["fork", "x", "3", "--after", "grow"], "--set"),
        (["retry", "x"], "say which trials: --failed, --diverged, or both"),
        (["gc", "heads-1", "--sweep-best", "0"], "--sweep-best"),
    ],
)
def test_commands_of_the_life_cycle_say_what_they_need(command: list[str], said: str) -> None:
    finished_sweep(Path("results"))
    result = invoke(*command)
    assert result.exit_code == 2 and said in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    "command",
    [["resume"], ["extend", "--trials", "+1"], ["fork", "1", "--after", "grow", "--set", "a=1"], ["retry", "--failed"],
     ["stop"], ["gc", "--dry-run"]],
)  # fmt: skip
def test_commands_of_the_life_cycle_know_the_sweeps(command: list[str]) -> None:
    finished_sweep(Path("results"))
    result = invoke(command[0], "heads-2", *command[1:])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: sweep in 'results': no 'heads-2'. Did you mean 'heads-1'?")


def ended_session(folder: SweepFolder, ended: str, limit: str | None) -> None:
    folder.add_session(Session(session="s", host="there", pid=7, started=1.0, seconds=5.0, ended=ended, limit=limit))


def test_a_sweep_that_ended_with_its_budget_says_which_and_how_to_go_on() -> None:
    folder = interrupted(Path("results"))
    folder.replace_job(checked_job({**job_mapping(trials=6), "budget": {"hours": 0.5}}, "job.yaml"))
    ended_session(folder, "budget.hours = 0.5 is used up: 0.5 h over all its sessions", "budget.hours")
    text = done("status", "heads-1")
    assert "stopped: budget.hours = 0.5 is used up: 0.5 h over all its sessions.\n" in text
    assert "next:  raysweep resume heads-1 --set budget.hours=1 · " in text
    assert from_json("status", "heads-1")["stopped"].startswith("budget.hours = 0.5 is used up")


def test_a_sweep_that_was_asked_to_stop_says_so() -> None:
    folder = interrupted(Path("results"))
    ended_session(folder, ASKED, None)
    text = done("status", "heads-1")
    assert f"stopped: {ASKED}.\n" in text and "next:  raysweep resume heads-1 · " in text
    ended_session(folder, "done", None)
    assert "stopped:" not in done("status", "heads-1")


def test_stopping_what_does_not_run_says_so(workplace: Path) -> None:
    finished_sweep(Path("results"))
    result = invoke("stop", "heads-1")
    assert result.exit_code == 0 and result.stderr == "heads-1 is not running.\n"
    assert "best trial 2" in result.stdout and not (workplace / "results" / "heads-1" / "stop").exists()


def test_stop_names_the_driver_waits_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(Path("results"))
    folder.add_session(Session(session="s", host="there", pid=7, started=1.0))
    monkeypatch.setattr(ownership, "POLL_S", 0.01)
    driving = threading.Event()

    def drive() -> None:
        lock = folder.lock()
        driving.set()
        while not folder.stop_requested():
            time.sleep(0.01)
        ended_session(folder, ASKED, None)
        lock.release()

    thread = threading.Thread(target=drive)
    thread.start()
    driving.wait()
    result = invoke("stop", "heads-1")
    thread.join()
    assert result.stderr.splitlines() == [
        "heads-1 (there, process 7) was asked to stop", "heads-1 has stopped.",
    ]  # fmt: skip
    assert "next:  raysweep resume heads-1 · " in result.stdout


def with_checkpoints(results: Path) -> SweepFolder:
    """Two trials, the second better, each with a kilobyte after each training phase."""
    folder = make_sweep(results, job=job_mapping(trials=2))
    about = folder.environment() | {"fingerprints": {"model": "m", "data": "d"}}
    (folder.path / "env.json").write_text(json.dumps(about))
    folder.store.mkdir()
    for trial, values in ((1, TAYLOR), (2, ENTROPY)):
        add_trial(folder, trial, values, {**WHOLE, "learn": 42.0 - trial})
        for name in ("baseline", "learn"):
            with entries.appearing(folder.store / f"{name}-of-{trial}", folder.store) as entry:
                (entry / "tensors.safetensors").write_bytes(bytes(1000))
    return folder


def test_collecting_lists_first_and_then_says_what_was_freed(workplace: Path) -> None:
    folder = with_checkpoints(Path("results"))
    before = contents(workplace)
    text = done("gc", "heads-1", "--dry-run", "--trial-best", "0", "--trial-latest", "0")
    assert contents(workplace) == before
    assert [line.split()[:4] for line in text.splitlines()[1:4]] == [
        ["baseline", "1", "1.0", "kB"], ["baseline", "2", "1.0", "kB"], ["learn", "1", "1.0", "kB"],
    ]  # fmt: skip
    assert text.splitlines()[-2:] == [
        "3.0 kB would be freed, 1.0 kB in 1 checkpoint stays.",
        "next:  raysweep gc heads-1 --trial-best 0 --trial-latest 0 · raysweep status heads-1",
    ]
    freed = from_json("gc", "heads-1", "--trial-best", "0", "--trial-latest", "0")
    assert (freed["bytes_collected"], freed["bytes_kept"], freed["dry_run"]) == (3000, 1000, False)
    assert [entry["trials"] for entry in freed["kept"]] == [[2]]
    assert not (folder.store / "learn-of-1" / "tensors.safetensors").exists()
    assert done("gc", "heads-1").splitlines() == [
        "Nothing to free: its only checkpoint (1.0 kB) is still needed.", "next:  raysweep status heads-1",
    ]  # fmt: skip


def test_a_run_in_which_nothing_completed_has_failed(fake: FakeSweep) -> None:
    fake.status = "FAILED"
    result = invoke("run", write_job())
    assert result.exit_code == 1
    assert "no trial completed." in result.stdout


def test_an_interrupted_run_says_how_to_go_on(fake: FakeSweep) -> None:
    fake.interrupt = True
    result = invoke("run", write_job(), "--results", "elsewhere")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith("interrupted. Go on with: raysweep resume heads-1 --results elsewhere\n")


def test_a_resume_that_is_interrupted_before_it_began_says_how_to_go_on(workplace: Path) -> None:
    code = """
import signal
from raysweep import api, cli

api.resume = lambda sweep, **rest: signal.raise_signal(signal.SIGINT)
cli.main(["resume", "heads-1"])
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "interrupted. Go on with: raysweep resume heads-1\n"


def test_ray_that_does_not_start_is_one_error_and_the_sweep_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(ray: Any) -> str:
        raise RuntimeError("The current node timed out during startup.")

    with monkeypatch.context() as patch:
        patch.setattr("raysweep.cluster.local_ray.LocalRay.address", fail)
        result = invoke("run", write_job(), "--results", "elsewhere")
    assert (result.exit_code, result.stdout) == (1, "")
    [said] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith(
        "error: Ray could not be started on this machine: The current node timed out during startup."
    )
    assert "`raysweep doctor`" in said and "--address" in said and "Traceback" not in result.stderr
    assert said.endswith("Go on with: raysweep resume heads-1 --results elsewhere")
    done = invoke("status", "heads-1", "--results", "elsewhere")
    assert done.exit_code == 0 and "raysweep resume heads-1" in done.stdout


@pytest.mark.parametrize(("name", "again"), [("SIGINT", False), ("SIGTERM", True), ("SIGHUP", False)])
def test_a_signal_inside_a_destructor_is_noted_and_a_second_one_leaves_at_once(
    workplace: Path, name: str, again: bool
) -> None:
    make_sweep(Path("results"))
    code = f"""
import signal, time
from pathlib import Path
from raysweep import api, cli
from raysweep.sweep import signals

class Group:
    def __del__(self):
        signal.raise_signal(signal.{name})

def run(job, *, observer, results, **rest):
    folder = api.load("heads-1", results=results)
    observer.sweep_started(folder, folder.job(), 3)
    with signals.watched():
        group = Group()
        del group
        signal.raise_signal(signal.{name})  # as `timeout` does, which sends it to the group as well
        print("noted", signals.received())
        if {again}:
            signals.SAME_S = 0.0
            signal.raise_signal(signal.SIGTERM)
            print("still here")
    return folder

api.run = run
cli.main(["run", "job.yaml"])
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (130, "")
    said = ended.stderr.splitlines()[1:]
    assert said == [f"noted {name}", "interrupted. Go on with: raysweep resume heads-1"]


def test_nohup_keeps_a_sweep_from_being_hung_up() -> None:
    code = """
import signal
from raysweep.sweep import signals

signal.signal(signal.SIGHUP, signal.SIG_IGN)
with signals.noted(lambda: "interrupted."), signals.watched():
    signal.raise_signal(signal.SIGHUP)
    assert signals.received() is None
    signal.raise_signal(signal.SIGINT)
    assert signals.received() == "SIGINT"
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_what_an_error_or_a_file_is_called_never_steers_the_terminal(tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\u202ejob.yaml"
    Path(name).write_text("name: a\n")
    result = invoke("validate", name)
    assert result.exit_code == 2 and "\\x1b]0;owned\\x07\\u202ejob.yaml" in result.stderr
    assert not set("\x1b\x07\u202e") & set(result.output)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOTDIR])
def test_a_folder_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def closed(*given: Any, **asked: Any) -> None:
        raise OSError(number, os.strerror(number), "/closed/folder")

    monkeypatch.setattr(api, "plan", closed)
    result = invoke("plan", write_job())
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(f"error: '/closed/folder' cannot be used ({os.strerror(number)}). Results go to")
    assert "RAYSWEEP_RESULTS" in result.stderr and "HF_HOME" in result.stderr and "TMPDIR" in result.stderr


def test_an_error_that_is_no_folder_s_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **asked: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/closed/folder")

    monkeypatch.setattr(api, "plan", broken)
    assert isinstance(invoke("plan", write_job()).exception, OSError)


def test_any_interrupted_command_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: Any, **asked: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "plan", interrupt)
    result = invoke("plan", write_job())
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted.\n")


@pytest.mark.parametrize(("seconds", "asks"), [(60.0, False), (7200.0, True), (None, False)])
def test_a_person_sees_the_plan_and_is_asked_about_long_work(
    fake: FakeSweep, monkeypatch: pytest.MonkeyPatch, seconds: float | None, asks: bool
) -> None:
    checked = checked_job(JOB, "job.yaml")
    found = Checked(
        fingerprints=Fingerprints(model="m", data="d"), data={"classes": None, "splits": {}, "left_out": []}
    )
    plan = replace(estimate(checked, found, []), seconds=seconds, seconds_from="a guess")
    monkeypatch.setattr(api, "plan", lambda *given, **asked: (checked, plan))
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda stream: True)
    refused = invoke("run", write_job(), "--results", "first", input="n\n")
    assert (refused.exit_code == 1) == asks
    assert "phases of a trial" in refused.stderr
    assert "phases of a trial" not in refused.stdout
    assert ("Proceed? [Y/n]" in refused.stderr) == asks
    assert Path("first").exists() != asks
    assert invoke("run", "job.yaml", "--results", "second", input="\n").exit_code == 0
    not_asked = invoke("run", "job.yaml", "--yes", "--results", "third")
    assert (not_asked.exit_code, "Proceed?" in not_asked.stderr) == (0, False)
    assert "phases of a trial" not in not_asked.stderr


# The doctor.


def test_the_doctor_is_content_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = done("doctor")
    assert "✓ python: 3." in text
    assert "✗" not in text
    assert text.endswith("next:  raysweep run\n")
    findings = from_json("doctor")
    assert {frozenset(finding) for finding in findings} == {frozenset({"what", "status", "found"})}


def test_the_doctor_exits_with_1_where_something_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Check("python", "ok", "3.11"), Check("memory", "bad", "1.0 GiB; 4 are needed")]
    monkeypatch.setattr("raysweep.cluster.doctor.examine", lambda: findings)
    result = invoke("doctor")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == "✓ python: 3.11\n✗ memory: 1.0 GiB; 4 are needed\n"
    result = invoke("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)[1]["status"] == "bad"
