"""What people read: no value is cut off, the best trial is marked, and a narrow terminal still shows a table."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text
from support.sweeps import (
    ENTROPY,
    JOB,
    TAYLOR,
    WHOLE,
    add_on_seed,
    add_trial,
    finished_sweep,
    job_mapping,
    make_sweep,
    phase_record,
    trial_record,
)

from raysweep.cluster.doctor import Check
from raysweep.records.schema import Status
from raysweep.reports.conclusions import show_perplexity
from raysweep.reports.summary import sweep_state, trial_state
from raysweep.reports.tables.listing import print_examination, print_listing
from raysweep.reports.tables.parts import show_value
from raysweep.reports.tables.sweep import last_cycle, print_sweep
from raysweep.reports.tables.trial import print_trial


def printed(print_it: Callable[..., None], *content: Any, width: int = 10_000, terminal: bool = False) -> str:
    output = StringIO()
    print_it(*content, Console(file=output, width=width, force_terminal=terminal, _environ={}))
    return output.getvalue()


def sweep_text(folder: Any, **how: Any) -> str:
    return printed(print_sweep, sweep_state(folder), **how)


def row(text: str, start: str) -> list[str]:
    """Return the cells of the line that starts like this."""
    line = next(line for line in text.splitlines() if line.split()[:1] == [start])
    return [cell.strip() for cell in line.strip().split("  ") if cell.strip()]


def table_lines(text: str) -> list[str]:
    """Return the lines of the table: what stands between the first line and the sentences."""
    lines = text.splitlines()[1:]
    end = next(at for at, line in enumerate(lines) if line.startswith(("left out", "best trial", "no trial", "trial ")))
    return lines[:end]


def test_no_value_is_cut_off_where_nobody_looks_at_a_terminal(tmp_path: Path) -> None:
    text = sweep_text(finished_sweep(tmp_path))
    assert text.splitlines()[0] == "heads-1   gpt2-nano on python-docs"
    assert row(text, "1") == [
        "1", "taylor 30%", "gradient_sensitivity 25%", "4.123", "40.00 → 50.00 → 50.00 → 42.50", "6/8", "1.06M", "2.30",
        "12.5",
    ]  # fmt: skip
    assert "base → pruned → grown → learned" in text
    assert "…" not in text


def test_the_best_trial_is_marked(tmp_path: Path) -> None:
    folder = finished_sweep(tmp_path)
    text = sweep_text(folder)
    assert row(text, "*2")[1] == "entropy low 55%"
    assert text.count("*") == 1
    best = next(line for line in sweep_text(folder, terminal=True).splitlines() if "*2" in line)
    assert best.startswith("\x1b[1;32m")
    assert "best trial 2: perplexity 41.25 with 6 of 8 heads. The best of 2 single-seed trials is optimistic" in text


def test_a_value_whose_condition_does_not_hold_is_a_dash(tmp_path: Path) -> None:
    assert row(sweep_text(finished_sweep(tmp_path)), "*2")[3] == "–"


def test_a_trial_that_did_not_complete_shows_how_far_it_came_and_why(tmp_path: Path) -> None:
    text = sweep_text(finished_sweep(tmp_path))
    assert row(text, "3")[4] == "40.00◇ → FAILED"
    assert "trial 3 FAILED: RuntimeError: no [space] left\n" in text
    assert "Traceback" not in text
    assert "3 of 3 trials ended: 2 complete, 1 failed · 10 phases run, 2 reused (◇) · 180 training steps" in text


@pytest.mark.parametrize("status", ["STOPPED", "DIVERGED", "CANCELLED", None])
def test_a_sweep_without_a_completed_trial_says_so(tmp_path: Path, status: Status | None) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={"baseline": 40.0}, status=status)
    text = sweep_text(folder)
    assert row(text, "1")[4] == f"40.00 → {status or 'UNFINISHED'}"
    assert "no trial completed." in text
    assert "*" not in text


def test_a_sweep_that_has_not_begun_shows_no_table(tmp_path: Path) -> None:
    assert sweep_text(make_sweep(tmp_path)).splitlines() == [
        "heads-1   gpt2-nano on python-docs",
        "no trial completed.",
        "0 of 3 trials ended · 0 phases run, 0 reused (◇) · 0 training steps · 0 worker groups started",
    ]


def test_a_trial_without_phases_has_dashes(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={}, status="FAILED", error="lane-0 was lost")
    assert row(sweep_text(folder), "1")[4:] == ["FAILED", "–", "–", "–", "12.5"]


def test_a_job_without_a_search_is_one_line_without_values(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job={key: value for key, value in JOB.items() if key != "search"})
    add_trial(folder, 1, values={})
    text = sweep_text(folder)
    assert row(text, "*1") == ["*1", "40.00 → 50.00 → 50.00 → 42.50", "6/8", "1.06M", "2.30", "12.5"]
    assert "best trial 1: perplexity 42.50 with 6 of 8 heads.\n" in text  # and no word about seeds
    assert "1 of 1 trial ended" in text


def test_only_phases_that_were_run_stand_in_the_heading(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={"baseline": 40.0, "prune": 50.0, "measure": 50.0, "learn": 42.0})
    text = sweep_text(folder)
    assert "base → pruned → learned" in text
    assert "40.00 → 50.00 → 42.00" in text


def test_of_several_cycles_the_last_is_shown_and_said_to_be(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    second = {f"{phase}@2": value + 5 for phase, value in WHOLE.items() if phase != "baseline"}
    add_trial(folder, 1, perplexities={**WHOLE, **second}, reused=["measure", "grow@2"])
    text = sweep_text(folder)
    assert "perplexity (last cycle)" in text
    assert "40.00 → 55.00 → 55.00◇ → 47.50" in text
    assert last_cycle({**WHOLE, "prune@2": 1.0, "measure@10": 1.0, "measure@9": 2.0}) == {
        "baseline": "baseline", "measure": "measure@10",
    }  # fmt: skip


def test_at_80_columns_every_trial_is_one_whole_line(tmp_path: Path) -> None:
    text = sweep_text(finished_sweep(tmp_path), width=80, terminal=True)
    lines = [line for line in table_lines(text) if line.strip()]
    assert len(lines) == 2 + 3  # the heading has two
    assert all(len(_plain(line)) <= 80 for line in lines)
    assert row(_plain(text), "1") == ["1", "taylor 30%", "gradient_sensitivity 25%", "4.123", "40.00 → 42.50", "6/8"]
    assert row(_plain(text), "3")[-2:] == ["40.00◇ → FAILED", "5/8"]
    assert "base → learned" in text
    assert "left out of this narrow table, but in --json: params, MFLOP/token, s" in text


def test_columns_are_left_out_only_as_far_as_the_width_asks(tmp_path: Path) -> None:
    folder = finished_sweep(tmp_path)
    assert "left out" not in sweep_text(folder, width=125)
    without_costs = sweep_text(folder, width=105)
    assert "but in --json: params, MFLOP/token\n" in without_costs
    assert "→ grown →" in without_costs


@pytest.mark.parametrize("width", [30, 50, 70, 90, 110])
def test_nothing_is_cut_off_or_too_wide_at_any_width(tmp_path: Path, width: int) -> None:
    text = sweep_text(finished_sweep(tmp_path), width=width)
    assert "…" not in text
    assert all(len(line) <= width for line in table_lines(text))
    together = "".join("".join(table_lines(text)).split())
    assert all(piece in together for piece in ("4.123", "6/8", "42.50"))


def test_many_parameters_share_a_cell_on_a_narrow_terminal(tmp_path: Path) -> None:
    job = copy.deepcopy(job_mapping())
    others = {"training.weight_decay": 0.011, "cycle.prune.budget": "per_layer", "cycle.grow.init": "zero_output"}
    job["search"]["space"] = {
        **job["search"]["space"],
        "training.weight_decay": {"uniform": [0.0, 0.1]},
        "cycle.prune.budget": {"choice": ["global", "per_layer"]},
        "cycle.grow.init": {"choice": ["zero_output", "small_random"]},
    }
    folder = make_sweep(tmp_path, job=job)
    add_trial(folder, 1, {**TAYLOR, **others})
    wide = row(sweep_text(folder), "*1")
    assert wide[:7] == ["*1", "taylor 30%", "gradient_sensitivity 25%", "4.123", "zero_output", "per_layer", "0.011"]
    narrow = " ".join(sweep_text(folder, width=80).split())
    assert "values" in narrow
    assert "prune taylor 30%, grow gradient_sensitivity" in narrow
    assert "training.weight_decay" in narrow


def test_what_people_wrote_is_never_read_as_markup(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, {"data.name": "[red]a[/red]/:smile:"}, status="FAILED", error="[bold]no[/bold]")
    text = sweep_text(folder, terminal=True)
    assert "[red]a[/red]/:smile:" in text
    assert "trial 1 FAILED: [bold]no[/bold]" in text
    assert "[bold]fire[/bold]" in printed(print_trial, trial_state(folder, 1))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "null"), (True, "true"), (False, "false"), (3, "3"), (1e-5, "1e-05"), (0.123456, "0.1235"), ("tpe", "tpe")],
)
def test_values_are_shown_as_in_yaml(value: Any, shown: str) -> None:
    assert show_value(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(5.125, "5.12"), (99.5, "99.50"), (194.94, "194.9"), (3e7, "3.0e+07"), (math.inf, "inf")]
)
def test_perplexities_keep_the_digits_that_matter(value: float, shown: str) -> None:
    assert show_perplexity(value) == shown


def test_one_trial_shows_values_phases_decisions_heads_and_samples(tmp_path: Path) -> None:
    folder = finished_sweep(tmp_path)
    lines = printed(print_trial, trial_state(folder, 2)).splitlines()
    assert lines[0] == "heads-1 trial 2: COMPLETE   12.5 s   2 attempts"
    assert lines[1:6] == [
        "  cycle.prune.strategy: entropy", "  cycle.prune.direction: low", "  cycle.prune.level: 0.55",
        "  cycle.grow.strategy: balanced", "  cycle.grow.ratio: 0",
    ]  # fmt: skip
    text = "\n".join(lines)
    assert row(text, "baseline◇") == ["baseline◇", "3.6889", "40.00", "8", "1,080,000", "2.400", "100", "0.1"]
    assert row(text, "learn")[1:4] == ["3.7197", "41.25", "6"]
    assert "prune 1: taylor removed 3: 0.2 1.0 1.3" in lines
    assert "grow 1: balanced grew 1: 0.2" in lines
    assert lines[lines.index("heads by layer (■ original, ▲ grown, · absent)") + 1 :][:2] == ["   0 ■■▲■", "   1 ·■■·"]
    assert "after learn 1: 'the ring' → ' of [bold]fire[/bold]\\n'  (repetition 25%)" in lines


def test_one_trial_shows_how_far_scores_agree_with_contributions_the_best_first(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={"baseline": 40.0}, status=None)
    agreement: dict[str, dict[str, float | None]] = {
        "entropy": {"global": None, "layer_centred": None},
        "taylor": {"global": 0.734, "layer_centred": -0.5},
        "signed_taylor": {"global": -0.25, "layer_centred": None},
        "fisher": {"global": 0.9, "layer_centred": 1.0},
    }
    event = {"step": 6, "phase": "measure", "cycle": 1, "agreement": {"taylor": agreement["taylor"]}}
    folder.add_phase(replace(phase_record(1, "measure", 50.0), agreement=agreement))
    folder.add_phase(replace(phase_record(1, "measure@2", 50.0), agreement=None))
    folder.add_phase(replace(phase_record(1, "learn@2", 42.0), events=[{**event, "agreement": None}, event]))
    lines = [line for line in printed(print_trial, trial_state(folder, 1)).splitlines() if "agreement" in line]
    said = "rank agreement with contribution, global (layer-centred)"
    assert lines == [
        f"measure 1: {said}: fisher 0.90 (1.00), taylor 0.73 (-0.50), signed_taylor -0.25 (–), entropy – (–)",
        f"measure 1, step 6: {said}: taylor 0.73 (-0.50)",
    ]


def test_one_trial_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    lines = printed(print_trial, trial_state(finished_sweep(tmp_path), 1), width=80).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("phase"))
    assert all(len(line) <= 80 and "…" not in line for line in lines[start : start + 6])


def test_a_failed_trial_shows_its_whole_error(tmp_path: Path) -> None:
    text = printed(print_trial, trial_state(finished_sweep(tmp_path), 3))
    assert "heads-1 trial 3: FAILED" in text
    assert "error: grow: gave up after 3 attempts: rank 0: Traceback\n  File x\nRuntimeError: no [space] left" in text


def test_a_trial_without_phases_says_so(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    add_trial(folder, 1, perplexities={}, status=None)
    text = printed(print_trial, trial_state(folder, 1))
    assert "trial 1: UNFINISHED" in text
    assert text.endswith("no phase finished.\n")


def test_a_listing_wraps_and_says_where_nothing_is() -> None:
    text = printed(print_listing, {"prune": [{"name": "x", "about": "word " * 30}], "sweeps": []}, width=80)
    assert text.count("word") == 30
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "sweeps\n  none yet" in text


def test_findings_are_marked() -> None:
    findings = [Check("a", "ok", "[x]"), Check("b", "note", "y"), Check("c", "bad", "z")]
    assert printed(print_examination, findings).splitlines() == ["✓ a: [x]", "! b: y", "✗ c: z"]


def _plain(text: str) -> str:
    return Text.from_ansi(text).plain


# Objectives, constraints, stopping rules, seeds.


def test_the_front_of_several_objectives_is_marked_and_each_has_a_column(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=3, minimize=["loss", "params"]))
    for trial, (loss, params) in enumerate([(3.0, 30e5), (2.125, 50e5), (3.5, 40e5)], start=1):
        phases = add_trial(folder, trial, status=None)
        ended = trial_record(trial, phases=phases, objective=loss)
        folder.add_trial(replace(ended, objectives={"loss": loss, "params": params}))
    text = sweep_text(folder)
    assert "↓ loss" in text and "↓ params" in text
    assert row(text, "*1")[5:7] == ["3", "3,000,000"] and row(text, "*2")[5:7] == ["2.125", "5,000,000"]
    assert row(text, "3")
    assert "Pareto front of loss and params: trials 2, 1. The best of 3 single-seed trials is optimistic" in text


def test_of_very_many_trials_the_best_are_shown_and_those_still_open(tmp_path: Path) -> None:
    state = sweep_state(finished_sweep(tmp_path))
    one = state["trials"][0]
    state["trials"] = [{**one, "trial": number, "objectives": {"loss": float(-number)}} for number in range(1, 301)] + [
        {**one, "trial": 301, "status": "UNFINISHED", "objectives": {}, "feasible": None}
    ]
    text = printed(print_sweep, state)
    numbers = [int(line.split()[0]) for line in text.splitlines() if "→" in line and line.split()[0].isdigit()]
    assert numbers == [*range(201, 301), 301]
    assert "left out of this table, but in --json: 200 trials that are no better\n" in text
    state["trials"] = state["trials"][:200]
    assert "for want of room" not in printed(print_sweep, state)


def test_who_misses_a_constraint_is_said(tmp_path: Path) -> None:
    rule = "loss <= baseline.loss"
    folder = make_sweep(tmp_path, job=job_mapping(constraints=[rule]))
    for trial, missed in enumerate([0.5, 0.25, -1.0], start=1):
        phases = add_trial(folder, trial, status=None)
        folder.add_trial(replace(trial_record(trial, phases=phases, objective=1.0), violations={rule: missed}))
    text = sweep_text(folder)
    assert "loss <= baseline.loss: missed by trials 1, 2; least by trial 2, by 0.25\n" in text
    assert [row(text, number)[5] for number in ("1", "2", "*3")] == ["no", "no", "yes"]
    shown = printed(print_trial, trial_state(folder, 1))
    assert "loss <= baseline.loss: missed by 0.5" in shown


def test_where_all_miss_a_constraint_there_is_no_best_trial(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=1, constraints=["loss <= 0"]))
    add_trial(folder, 1, status=None)
    folder.add_trial(replace(trial_record(1, objective=1.0), violations={"loss <= 0": 1.0}))
    assert "no trial keeps to the constraints." in sweep_text(folder)


def test_what_went_wrong_is_said_of_the_first_trials(tmp_path: Path) -> None:
    state = sweep_state(finished_sweep(tmp_path))
    failed = state["trials"][2]
    state["trials"] += [{**failed, "trial": number} for number in range(4, 63)]  # 60 in all
    text = printed(print_sweep, state)
    assert text.count("FAILED: RuntimeError") == 50
    assert "10 more lines of this kind; show a trial to see its own.\n" in text


def test_why_trials_were_stopped_is_said_of_a_few(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=7))
    for trial in range(1, 8):
        add_trial(folder, trial, status=None)
        folder.add_trial(replace(trial_record(trial, "STOPPED"), stopped=f"rung {trial} [low]"))
    text = sweep_text(folder)
    assert "trial 5 STOPPED: rung 5 [low]\n2 more trials STOPPED; show a trial to see why.\n" in text
    assert "stopped: rung 7 [low]" in printed(print_trial, trial_state(folder, 7))


def seeded(tmp_path: Path, fresh: list[float]) -> str:
    folder = make_sweep(tmp_path, job=job_mapping(trials=2, seeds=2))
    add_on_seed(folder, 1, TAYLOR, 42.0, dense=41.0)
    add_on_seed(folder, 2, ENTROPY, 41.5, dense=41.0)
    add_on_seed(folder, 3, TAYLOR, 42.1, seed=1, proposer="replicate", of=1, dense=41.0)
    add_on_seed(folder, 4, ENTROPY, 43.5, seed=1, proposer="replicate", of=2, dense=41.0)
    for seed, perplexity in enumerate(fresh, start=2):
        add_on_seed(folder, 3 + seed, TAYLOR, perplexity, seed=seed, proposer="confirmation", of=1)
    return sweep_text(folder)


def test_replicates_stand_with_their_point(tmp_path: Path) -> None:
    text = seeded(tmp_path, [41.9, 42.0])
    first = text.index("over seeds")
    assert row(text[:first], "*1") and row(text[:first], "2")
    with pytest.raises(StopIteration):
        row(text[:first], "3")
    assert row(text[first:], "1")[:4] == ["1", "2", "3.7389 ± 0.0151", "–"]
    assert row(text[first:], "2")[3].startswith("+0.0104 ± 0.2") and row(text[first:], "2")[3].endswith(", 2 pairs)")


def test_what_a_win_is_worth_is_said(tmp_path: Path) -> None:
    chosen = "Chosen among 2 by loss: 3.7377 in the search, 3.7389 over its seeds, 3.7365 ± 0.0151 on 2 fresh seeds"
    assert f"{chosen}: confirmed." in seeded(tmp_path / "a", [41.9, 42.0])
    assert "not confirmed: 1 of 2 fresh seeds have completed." in seeded(tmp_path / "b", [41.9])
    assert "no better than trial 2 with 3.7492, so there is no clear winner." in seeded(tmp_path / "c", [43.0, 44.0])
    assert "Its other seeds are still to come." in one_of_several(tmp_path / "d")


def one_of_several(tmp_path: Path) -> str:
    folder = make_sweep(tmp_path, job=job_mapping(trials=2, seeds=2))
    add_on_seed(folder, 1, TAYLOR, 42.0)
    return sweep_text(folder)


def test_a_replicate_says_of_which_trial_it_is_one(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, job=job_mapping(trials=1, seeds=2))
    add_on_seed(folder, 1, TAYLOR, 42.0)
    add_on_seed(folder, 2, TAYLOR, 43.0, seed=1, proposer="replicate", of=1)
    assert "  replicate of trial 1, seed 1\n" in printed(print_trial, trial_state(folder, 2))
