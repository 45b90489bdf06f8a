"""The command line as people and scripts meet it: help, plans, what is printed where, and what is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from sweeps import (
    JOB,
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
from raysweep.archive import SweepFolder
from raysweep.cli import main
from raysweep.core.estimate import estimate
from raysweep.doctor import Finding
from raysweep.jobfile import check_job
from raysweep.listing import STRATEGIES
from raysweep.plan import Fingerprints
from raysweep.yamlfile import dump_mapping

HEAVY = ("torch", "ray", "transformers", "optuna", "pydantic")
COMMANDS = [
    "run", "resume", "extend", "fork", "retry", "stop", "validate", "plan", "list", "status", "show", "tensorboard",
    "export", "gc", "analyze", "simulate", "doctor",
]  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYSWEEP_RESULTS", raising=False)
    for module in ("work", "look"):  # the tests' own process
        monkeypatch.setattr(f"raysweep.cli.{module}.make_interruptible", lambda: None)
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
    assert text.endswith("next:  raysweep show heads-1 2 · raysweep tensorboard heads-1\n")


def test_of_a_large_sweep_the_table_shows_what_tells_most(monkeypatch: pytest.MonkeyPatch) -> None:
    finished_sweep(Path("results"))
    assert "shown are" not in done("status", "heads-1")
    monkeypatch.setattr("raysweep.reports.selection.ROWS", 1)
    text = done("status", "heads-1")
    assert "shown are 1 trials, the best among them. All 3: raysweep status heads-1 --all\n" in text
    assert "FAILED" not in text
    assert "3 of 3 trials ended" in text
    assert "FAILED" in done("status", "heads-1", "--all")
    assert len(from_json("status", "heads-1")["trials"]) == 3


def test_a_check_says_of_each_invariant_whether_it_holds() -> None:
    folder = make_sweep(Path("results"))
    text = done("status", "heads-1", "--check")
    assert text.startswith("heads-1   0 of 3 trials ended\n✓ planned = finished + stopped + diverged + failed\n")
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
    assert f"raysweep show heads-1 2{there} · raysweep tensorboard heads-1{there}\n" in text
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


def test_tensorboard_of_all_sweeps_leaves_out_those_that_never_began(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []

    class Server:
        def wait(self) -> int:
            return 0

    def serve(logdir: Path, port: int) -> Server:
        shown.append(sorted(path.name for path in Path(logdir).iterdir()))
        return Server()

    monkeypatch.setattr("raysweep.reports.tensorboard.serve", serve)
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
        def wait(self) -> int:
            told.append("wait")
            if len(told) == 1:
                raise KeyboardInterrupt
            return 0

        def terminate(self) -> None:
            told.append("terminate")

    monkeypatch.setattr("raysweep.reports.tensorboard.serve", lambda logdir, port: Server())
    (finished_sweep(Path("results")).path / "tensorboard").mkdir()
    assert invoke("tensorboard", "heads-1").exit_code == 0
    assert told == ["wait", "terminate", "wait"]


# Plans.

PLAN_FIELDS = {
    "trials", "phases", "phases_shared", "steps", "steps_shared", "parameters", "seconds", "seconds_from",
    "worker_memory_bytes", "disk_bytes", "example", "distinct", "saving", "trials_reusing", "prefixes_reused", "stages",
}  # fmt: skip


def write_job(**search: Any) -> str:
    Path("job.yaml").write_text(dump_mapping(job_mapping(**search)))
    return "job.yaml"


def test_a_plan_is_counted_and_starts_nothing(workplace: Path) -> None:
    job = write_job(space={"cycle.prune.strategy": {"choice": ["taylor"]}})
    found = from_json("plan", job)
    assert set(found) == PLAN_FIELDS
    assert (found["trials"], found["phases"], found["phases_shared"]) == (3, 15, 5)
    assert (found["steps"], found["steps_shared"]) == (420, 140)
    assert [phase["phase"] for phase in found["example"]] == list(WHOLE)
    assert [path.name for path in workplace.iterdir()] == ["job.yaml"]


def test_a_plan_as_a_table_names_the_run_that_it_is_of() -> None:
    text = done("plan", write_job(), "--trials", "2", "--set", "seed=3")
    assert "2 on 1 lane of 1 worker" in text
    assert "judged by a matrix product measured here" in text
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


# Running, with the sweep itself replaced.


class FakeSweep:
    """Stands for `api.run` and `api.resume`: tells of one trial, and leaves its record."""

    def __init__(self, status: str = "COMPLETE", interrupt: bool = False) -> None:
        self.status, self.interrupt = status, interrupt
        self.asked: dict[str, Any] = {}

    def __call__(self, named: Any, *, observer: Any, results: Path, **asked: Any) -> SweepFolder:
        self.asked = {"named": named, **asked}
        folder = make_sweep(results, job=job_mapping(trials=1))
        print("Ray has something to say")
        observer.sweep_started(folder, check_job(job_mapping(trials=1), "job.yaml"), 1)
        phase = phase_record(1, "baseline", 40.0)
        observer.phase_finished(phase)
        if self.interrupt:
            raise KeyboardInterrupt
        add_trial(folder, 1, perplexities={"baseline": 40.0}, status=self.status)
        observer.trial_finished(trial_record(1, self.status, [phase]))
        return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    sweep = FakeSweep()
    monkeypatch.setattr(api, "run", lambda *given, **asked: sweep(*given, **asked))
    monkeypatch.setattr(api, "resume", lambda *given, **asked: sweep(*given, **asked))
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
    result = invoke("run", write_job(), "--json", env={"FORCE_COLOR": "1"} if terminal else {})
    assert ("\x1b[" in result.stderr) == terminal
    assert json.loads(result.stdout)["best"] == 1


def test_run_passes_on_what_it_was_given(fake: FakeSweep) -> None:
    invoke("run", write_job(), "--set", "seed=3", "--set", "seed=4", "--trials", "5", "--name", "x", "--no-sharing",
           "--address", "ray://there:1", "--results", "elsewhere")  # fmt: skip
    assert fake.asked == {
        "named": Path("job.yaml"), "overrides": ("seed=3", "seed=4"), "trials": 5, "address": "ray://there:1",
        "name": "x", "sharing": False,
    }  # fmt: skip
    assert [path.name for path in Path("elsewhere").iterdir()] == ["heads-1"]
    invoke("resume", "heads-2", "--results", "again")
    assert fake.asked == {"named": "heads-2", "address": None}


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


def test_sigterm_ends_a_run_as_ctrl_c_does_though_ray_takes_it_for_itself(workplace: Path) -> None:
    make_sweep(Path("results"))
    code = """
import signal, types
from pathlib import Path
from raysweep import api, cli

def run(job, *, observer, results, **rest):
    folder = api.load("heads-1", results=results)
    observer.sweep_started(folder, folder.job(), 3)
    signal.signal(signal.SIGTERM, lambda *taken: print("taken"))  # as Ray does when it starts
    observer.trial_started(types.SimpleNamespace(trial=1, phases=()))
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGTERM)  # once more, while the run is cleaned up

api.run = run
cli.main(["run", "job.yaml"])
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr.splitlines()[1:] == ["interrupted. Go on with: raysweep resume heads-1"]


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
    checked = check_job(JOB, "job.yaml")
    plan = replace(estimate(checked, Fingerprints(model="m", data="d"), []), seconds=seconds, seconds_from="a guess")
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
    findings = [Finding("python", "ok", "3.11"), Finding("memory", "bad", "1.0 GiB; 4 are needed")]
    monkeypatch.setattr("raysweep.doctor.examine", lambda: findings)
    result = invoke("doctor")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == "✓ python: 3.11\n✗ memory: 1.0 GiB; 4 are needed\n"
    result = invoke("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)[1]["status"] == "bad"
