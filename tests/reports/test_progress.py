"""News of a running sweep: on a console of its own, a line a trial, a live line on a terminal, sane times."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text
from support.jobs import checked_job
from support.sweeps import JOB, TAYLOR, WHOLE, add_trial, job_mapping, make_sweep, phase_record, trial_record

from raysweep.contracts import Report
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, TrialPlan, make_plan
from raysweep.records.schema import PhaseRecord, Session
from raysweep.reports.live.progress import Progress, Silent
from raysweep.reports.wording import count, duration


def checked(**scale: int) -> Job:
    return checked_job({**job_mapping(trials=8), "scale": scale}, "heads.yaml")


@contextmanager
def watched(terminal: bool = False) -> Iterator[tuple[Progress, StringIO]]:
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=120, _environ={})
    with Progress(console) as progress:
        yield progress, output


def start(progress: Progress, folder: Path, remaining: int = 8, name: str = "heads-1", **scale: int) -> None:
    progress.sweep_started(make_sweep(folder, name), checked(**scale), remaining)


def run_trial(progress: Progress, trial: int, perplexities: Mapping[str, float] = WHOLE, *, reused: Any = (),
              seconds: Mapping[str, float] | None = None, **ending: Any) -> None:  # fmt: skip
    job = checked()
    progress.trial_started(
        make_plan(job.with_values(TAYLOR), TAYLOR, trial=trial, fingerprints=Fingerprints(model="m", data="d"))
    )
    phases = [phase_record(trial, label, value, label in reused) for label, value in perplexities.items()]
    for phase in phases:
        progress.phase_finished(_taking(phase, (seconds or {}).get(phase.phase, phase.seconds)))
    progress.trial_finished(trial_record(trial, phases=phases, **ending))


def _taking(phase: PhaseRecord, seconds: float) -> PhaseRecord:
    return PhaseRecord(**{**phase.__dict__, "seconds": seconds})


def test_it_starts_with_what_will_run_where(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path, workers=2, lanes=4)
        progress.lane_started([11, 12])
    assert output.getvalue().splitlines() == [
        "heads-1   8 trials on 4 lanes of 2 workers   python-docs   gpt2-nano",
        "lane ready (2 workers)",
    ]
    assert progress.sweep == "heads-1"


def test_a_silent_lane_is_named_with_its_silence_until_it_is_heard_or_given_up(tmp_path: Path) -> None:
    now = 100.0
    progress = Progress(Console(file=StringIO(), width=120, _environ={}), clock=lambda: now)
    start(progress, tmp_path, lanes=4)

    def table() -> str:
        screen = StringIO()
        Console(file=screen, width=200, _environ={}).print(progress._table())
        return screen.getvalue()

    progress.lane_silent("lane-2", 60.0, lost=False)
    now += 10.0
    assert "lane 2 silent for 70 s" in table()
    progress.lane_heard("lane-2")
    assert "silent" not in table()
    progress.lane_silent("lane-2", 60.0, lost=False)
    progress.lane_silent("lane-2", 301.0, lost=True)
    assert "silent" not in table()
    assert "lane 2 silent for 301 s: it is ended and started anew" in progress._console.file.getvalue()  # type: ignore[attr-defined]


def test_one_is_not_a_plural(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path, remaining=1, lanes=4)
    assert "1 trial on 1 lane of 1 worker " in output.getvalue()
    assert [count(0, "phase"), count(1, "phase"), count(2, "phase")] == ["0 phases", "1 phase", "2 phases"]


def test_a_finished_trial_is_one_line_with_the_best_so_far_and_the_time_left(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path)
        run_trial(progress, 1, seconds={"learn": 24.0})
        run_trial(progress, 2, {**WHOLE, "learn": 50.0}, reused=["baseline"], seconds={"learn": 24.0})
    lines = output.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1] == (
        "trial 1 (1/8)   baseline ✓ prune 30% ✓ measure ✓ grow ✓ learn ✓   loss 3.7495   best 3.7495 (trial 1)   12.5 s"
        "   about 4 min left"  # 7 trials of 30 s
    )
    assert lines[2].startswith(
        "trial 2 (2/8)   baseline ◇ prune 30% ✓ measure ✓ grow ✓ learn ✓   loss 3.9120   best 3.7495 (trial 1)"
    )


def test_the_number_that_is_minimised_is_named(tmp_path: Path) -> None:
    job = checked_job(job_mapping(minimize="perplexity"), "heads.yaml")
    with watched() as (progress, output):
        progress.sweep_started(make_sweep(tmp_path), job, 3)
        run_trial(progress, 1, objective=42.5)
    assert "perplexity 42.5000   best 42.5000 (trial 1)" in output.getvalue()


def test_a_trial_that_failed_says_why_in_one_line_and_is_never_the_best(tmp_path: Path) -> None:
    error = "baseline: gave up after 3 attempts: rank 0: Traceback\n  File x\nRuntimeError: no [bold]space[/bold]\n"
    with watched() as (progress, output):
        start(progress, tmp_path, remaining=3)
        run_trial(progress, 1, {"baseline": 40.0}, status="FAILED", error=error)
        run_trial(progress, 2, {"baseline": 40.0}, status="STOPPED", objective=0.1)
        run_trial(progress, 3)
    lines = output.getvalue().splitlines()
    assert "FAILED: RuntimeError: no [bold]space[/bold]   12.5 s" in lines[1]
    assert "best" not in lines[1] + lines[2]
    assert "STOPPED   12.5 s" in lines[2]
    assert "best 3.7495 (trial 3)" in lines[3]
    assert all("Traceback" not in line for line in lines)


def test_a_trial_without_a_single_phase_is_told_too(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path, remaining=1)
        progress.trial_finished(trial_record(1, "FAILED", error="lane lane-0 was lost"))
    assert output.getvalue().splitlines()[1] == "trial 1 (1/1)   FAILED: lane lane-0 was lost   12.5 s"


def test_the_phases_of_later_cycles_are_told_apart(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path)
        run_trial(progress, 1, {"baseline": 40.0, "learn": 41.0, "learn@2": 39.0})
    assert "baseline ✓ learn ✓ learn@2 ✓   loss" in output.getvalue()


def test_retries_and_resumed_phases_are_announced(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path)
        progress.trial_retried(3, 2)
        progress.phase_resumed(3, "learn", 200, 300)
    assert output.getvalue().splitlines()[1:] == [
        "trial 3: its workers were lost; attempt 2 resumes from its last checkpoint",
        "trial 3: learn resumes at step 200 of 300",
    ]


def test_a_resumed_sweep_knows_what_was_best_before(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={**WHOLE, "learn": 20.0})
    add_trial(folder, 2, perplexities={**WHOLE, "learn": 10.0}, status="STOPPED")
    with watched() as (progress, output):
        progress.sweep_started(folder, checked(), 6)
        run_trial(progress, 3)
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("heads-1   6 trials left on 1 lane")
    assert "trial 3 (1/6)" in lines[1]
    assert "best 2.9957 (trial 1)" in lines[1]


def times_left(output: StringIO) -> list[str]:
    return [line.rpartition("   ")[2] for line in output.getvalue().splitlines() if " left" in line]


def test_the_time_left_does_not_count_the_shared_baseline_again(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path, remaining=4)
        run_trial(progress, 1, seconds={"baseline": 1000.0, "learn": 4.0})
        run_trial(progress, 2, reused=["baseline"], seconds={"baseline": 0.0, "learn": 4.0})
        run_trial(progress, 3, reused=["baseline"], seconds={"baseline": 0.0, "learn": 4.0})
        run_trial(progress, 4, reused=["baseline"], seconds={"baseline": 0.0, "learn": 4.0})
    assert times_left(output) == ["about 30 s left", "about 20 s left", "about 10 s left"]


def test_the_time_left_counts_baselines_that_are_trained_again(tmp_path: Path) -> None:
    seconds = {"baseline": 90.0, "learn": 4.0}
    with watched() as (progress, output):
        start(progress, tmp_path, remaining=5)
        for trial in range(1, 5):
            run_trial(progress, trial, seconds=seconds)
    assert times_left(output)[-1] == "about 2 min left"  # one trial of 100 s


def test_lanes_share_the_time_that_is_left(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path, remaining=5, lanes=2)
        run_trial(progress, 1, reused=["baseline"], seconds={"learn": 4.0})
    assert times_left(output) == ["about 20 s left"]


def test_off_a_terminal_steps_and_phases_print_nothing(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path)
        before = output.getvalue()
        progress.phase_finished(phase_record(1, "baseline", 40.0))
        progress.step_logged(1, "learn", 10, 40, 3.5)
    assert output.getvalue() == before


def plan_of(trial: int, cycles: int = 1) -> TrialPlan:
    job = checked_job({**job_mapping(), "cycle": {**JOB["cycle"], "cycles": cycles}}, "heads.yaml")
    return make_plan(job.with_values(TAYLOR), TAYLOR, trial=trial, fingerprints=Fingerprints(model="m", data="d"))


def live(progress: Progress) -> list[str]:
    """Return the lines of the table as it stands now."""
    console = Console(file=StringIO(), force_terminal=True, width=200, height=20, record=True, _environ={})
    console.print(progress._table())
    return [line.rstrip() for line in console.export_text().splitlines()]


def cells(progress: Progress, trial: int) -> list[str]:
    """Return trial, phases, heads, loss, held-out loss and attempt of a row; what is empty is left out."""
    line = next(line for line in live(progress) if line.split()[:1] == [str(trial)])
    return [cell.strip() for cell in line.strip().split("  ") if cell.strip()]


def test_on_a_terminal_a_live_table_stands_below_what_is_printed(tmp_path: Path) -> None:
    with watched(terminal=True) as (progress, output):
        start(progress, tmp_path)
        assert live(progress)[0].startswith("starting workers · ")
        progress.trial_started(plan_of(1))
        run_trial(progress, 1)
        assert live(progress)[0].startswith("1 of 8 trials ended · best 3.7495 (trial 1) · ")
        assert "loss 3.7495   best 3.7495 (trial 1)" in Text.from_ansi(output.getvalue()).plain
    assert "\x1b[?25h" in output.getvalue()  # the cursor is back


def test_off_a_terminal_there_is_no_live_table(tmp_path: Path) -> None:
    with watched() as (progress, _):
        start(progress, tmp_path)
        assert progress._live is None


def test_a_row_shows_what_is_done_where_it_is_and_what_is_to_come(tmp_path: Path) -> None:
    with watched() as (progress, _):
        start(progress, tmp_path)
        progress.trial_started(plan_of(4))
        assert cells(progress, 4) == ["4", "baseline prune 30% measure grow learn", "1"]
        progress.phase_finished(phase_record(4, "baseline", 40.0, reused=True))
        assert cells(progress, 4) == ["4", "baseline ◇ prune 30% measure grow learn", "8/8", "3.689", "1"]
        for label in ("prune", "measure", "grow"):
            progress.phase_finished(phase_record(4, label, 50.0))
        progress.step_logged(4, "learn", 120, 300, 3.5)
        way = "baseline ◇ prune 30% ✓ measure ✓ grow ✓ learn ▶ 120/300"
        assert cells(progress, 4) == ["4", way, "6/8", "3.500", "3.912", "1"]
        progress.reported(Report(trial=4, phase="learn", cycle=1, step=100, flops=1.0, share=0.5, loss=3.25))
        assert cells(progress, 4)[-2:] == ["3.250", "1"]


def test_earlier_cycles_are_told_in_short(tmp_path: Path) -> None:
    with watched() as (progress, _):
        start(progress, tmp_path)
        progress.trial_started(plan_of(1, cycles=2))
        for label in WHOLE:
            progress.phase_finished(phase_record(1, label, 50.0))
        progress.phase_finished(phase_record(1, "prune@2", 50.0))
        progress.step_logged(1, "learn", 10, 40, 3.5)
        assert cells(progress, 1)[1] == "baseline ✓ cycle 1 ✓ prune@2 30% ✓ learn@2 ▶ 10/40 measure@2 grow@2"


def test_who_waits_or_is_paused_says_so_and_stands_last(tmp_path: Path) -> None:
    with watched() as (progress, _):
        start(progress, tmp_path)
        for trial in (1, 2, 3):
            progress.trial_started(plan_of(trial))
            progress.phase_finished(phase_record(trial, "baseline", 40.0))
        progress.trial_waiting(1, "prune", 1)
        progress.step_logged(2, "learn", 10, 40, 3.5)
        progress.trial_paused(2)
        assert cells(progress, 1)[1] == "baseline ✓ prune 30% … another trial runs it measure grow learn"
        assert cells(progress, 2)[1] == "baseline ✓ learn ‖ paused by its stopping rule prune 30% measure grow"
        assert [line.split()[0] for line in live(progress)[1:4]] == ["2", "3", "1"]
        progress.trial_released(1)
        progress.trial_started(plan_of(2))  # resumed by its rule: what it has done stays
        assert [cells(progress, trial)[1] for trial in (1, 2)] == ["baseline ✓ prune 30% measure grow learn"] * 2
        progress.trial_left(3)
        assert all(line.split()[:1] != ["3"] for line in live(progress))


def test_an_attempt_begins_its_row_again(tmp_path: Path) -> None:
    with watched() as (progress, _):
        start(progress, tmp_path)
        progress.trial_started(plan_of(1))
        progress.phase_finished(phase_record(1, "baseline", 40.0))
        progress.trial_retried(1, 2)
        progress.phase_finished(phase_record(1, "baseline", 40.0))
        assert cells(progress, 1) == ["1", "baseline ✓ prune 30% measure grow learn", "8/8", "3.689", "2"]


def test_control_arms_are_named(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path)
        progress.trial_started(plan_of(1))
        progress.phase_finished(replace(phase_record(1, "learn", 40.0), arm="dense"))
        assert "dense:learn ✓" in cells(progress, 1)[1]
        progress.trial_finished(trial_record(1, objective=3.0))
    assert "dense:learn ✓" in output.getvalue()


def test_more_trials_than_lines_are_counted(tmp_path: Path) -> None:
    with watched() as (progress, _):
        start(progress, tmp_path)
        for trial in range(1, 61):
            progress.trial_started(plan_of(trial))
        lines = live_lines(progress, height=12)
        assert len(lines) == 1 + 8 + 1 + 1
        assert lines[-2] == "and 52 more"


def live_lines(progress: Progress, height: int) -> list[str]:
    progress._console.height = height
    return live(progress)


def test_the_last_line_tells_cost_and_budget_over_all_sessions(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={})
    folder.add_phase(replace(phase_record(1, "baseline", 40.0), training_flops=2e12))
    folder.add_phase(replace(phase_record(1, "learn", 40.0, reused=True), training_flops=9e12))
    folder.add_session(Session(session="a", host="h", pid=1, started=0.0, seconds=1800.0))
    job = checked_job({**job_mapping(trials=8), "budget": {"hours": 12, "flops": 1e15}}, "heads.yaml")
    now = [100.0]
    progress = Progress(Console(file=StringIO(), width=120, _environ={}), clock=lambda: now[0])
    progress.sweep_started(folder, job, 7)
    now[0] += 1800.0
    trained = replace(phase_record(2, "learn", 40.0), training_flops=1e12)
    for record in (trained, trained):  # the second time by a later attempt
        progress.phase_finished(record)
    assert live(progress)[-1].endswith(" · 60 min of 12 h, 3e+12 of 1e+15 training FLOPs")


def test_what_breaks_a_constraint_is_never_the_best(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path)
        record = trial_record(1, phases=[phase_record(1, "learn", 40.0)])
        progress.trial_finished(replace(record, violations={"perplexity <= 30": 10.0}))
    assert "loss 3.6889 (misses a constraint)   12.5 s" in output.getvalue()
    assert "best" not in output.getvalue()


def test_why_a_trial_was_stopped_is_told_and_why_a_sweep_is(tmp_path: Path) -> None:
    with watched() as (progress, output):
        start(progress, tmp_path)
        progress.trial_finished(replace(trial_record(1, "STOPPED"), stopped="rung 1: below the best third"))
        progress.warned(2, "phase abc was damaged; it is run again")
        progress.sweep_interrupted("budget.hours used up")
    assert "STOPPED: rung 1: below the best third" in output.getvalue()
    assert "trial 2: phase abc was damaged; it is run again\nstopping: budget.hours used up\n" in output.getvalue()


def test_everything_goes_to_its_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Console(stderr=True)) as progress:
        start(progress, tmp_path)
        run_trial(progress, 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "heads-1   8 trials" in captured.err
    assert "trial 1 (1/8)" in captured.err


def test_a_live_line_gives_the_output_streams_back(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr
    with watched(terminal=True) as (progress, _):
        start(progress, tmp_path)
    assert (sys.stdout, sys.stderr) == before


def test_silence_is_an_observer_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    silent.sweep_started(make_sweep(tmp_path), checked(), 1)
    silent.step_logged(1, "learn", 1, 2, 3.0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (150, "2 min"), (3600, "60 min"), (5400, "1.5 h"), (9e4, "25.0 h")],
)
def test_durations_are_said_as_a_person_would(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_job_without_a_search_is_told_by_its_loss(tmp_path: Path) -> None:
    job = checked_job({key: value for key, value in JOB.items() if key != "search"}, "heads.yaml")
    with watched() as (progress, output):
        progress.sweep_started(make_sweep(tmp_path), job, 1)
        run_trial(progress, 1)
    assert "loss 3.7495" in output.getvalue()
