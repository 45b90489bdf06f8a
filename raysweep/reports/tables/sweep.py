"""Print a sweep as tables: its trials, and its points over their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysweep.records.objectives import ranked
from raysweep.records.schema import ON_OTHER_SEEDS
from raysweep.reports.conclusions import (
    conclusion,
    missed_lines,
    show_mean,
    show_perplexity,
    stopped_lines,
    trouble_lines,
    work_done,
)
from raysweep.reports.tables.parts import COSTS, empty_table, print_line, show_value
from raysweep.reports.wording import count

SHOWN_TOGETHER = {  # heading: the settings that one column shows
    "prune": ("cycle.prune.strategy", "cycle.prune.direction", "cycle.prune.level"),
    "grow": ("cycle.grow.strategy", "cycle.grow.ratio"),
    "lr x": ("cycle.learn.new_head_lr_multiplier",),
    "lr": ("cycle.learn.lr",),
}
SHARES = ("cycle.prune.level", "cycle.grow.ratio")
"""Settings that are shown as percentages."""
SHOWN_PHASES = {"baseline": "base", "measure": "pruned", "grow": "grown", "learn": "learned", "infer": "inferred"}
"""Phases whose perplexity is shown, and the word for it. Pruning is seen in what `measure` finds behind it."""
MOST_ROWS = 200
GAP = 2
"""Blanks that Rich leaves between two columns."""
NUMBERS = ("#", "heads", "recovery", *COSTS, "s")
"""Columns that are aligned to the right."""
Columns = dict[str, list[str]]


def print_sweep(state: Mapping[str, Any], console: Console) -> None:
    """Print a sweep: a line for each trial, what went wrong, points over their seeds, the best trial, the work done.

    Trials that run a point on other seeds have no line of their own: they are part of their point.
    """
    print_line(console, f"{state['sweep']}   {state['model']} on {state['data']}")
    if state["trials"]:
        shown = shown_trials(state)
        table, left_out = _fitting_table({**state, "trials": shown}, console)
        console.print(table)
        if hidden := sum(_has_row(trial) for trial in state["trials"]) - len(shown):
            print_line(console, f"left out of this table, but in --json: {count(hidden, 'trial')} that are no better")
        if left_out:
            print_line(console, f"left out of this narrow table, but in --json: {', '.join(left_out)}")
    for line in (*trouble_lines(state), *stopped_lines(state), *missed_lines(state)):
        print_line(console, line)
    # A point is named by the trial that found it: where that has no line, the point would refer to nothing.
    rows = {trial["trial"] for trial in shown_trials(state)}
    if points := [point for point in state["points"] if point["trial"] in rows]:
        print_points(points, console)
    print_line(console, f"{conclusion(state)}\n{work_done(state)}")


def print_points(points: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print points over their seeds: means, and differences from the best point and from their control arms."""
    names = list(points[0]["objectives"])
    arms = dict.fromkeys(arm for point in points for arm in point["against_controls"])
    several = len(names) > 1  # with one objective, "against the best" says which
    against = {f"{name + ' ' if several else ''}against the best": name for name in names}
    table = empty_table(
        ["#", "seeds", *names, *against, *(f"loss against {arm}" for arm in arms)], right=("#", "seeds")
    )
    for point in points:
        table.add_row(
            str(point["trial"]),
            str(len(point["seeds"])),
            *(show_mean(point["objectives"][name]) for name in names),
            *(_difference((point["against_best"] or {}).get(name)) for name in against.values()),
            *(_difference(point["against_controls"].get(arm)) for arm in arms),
        )
    print_line(console, "over seeds: means and differences paired by seed, each ± half the width of its 95% interval")
    console.print(table)


def last_cycle(perplexity: Mapping[str, float]) -> dict[str, str]:
    """Return phase -> label for the phases to show: the baseline, and those of the last cycle."""
    names = [name for name in perplexity if name.partition("@")[0] in SHOWN_PHASES]
    last = max((int(name.partition("@")[2] or 1) for name in names), default=1)
    kept = [name for name in names if name == "baseline" or int(name.partition("@")[2] or 1) == last]
    return {name.partition("@")[0]: name for name in kept}


def _difference(found: Mapping[str, Any] | None) -> str:
    """Write a paired difference with its interval, its test and the number of pairs."""
    if found is None:
        return "–"
    if found["p_value"] is None:  # a single pair has neither an interval nor a test
        return f"{found['mean']:+.4f}"
    test = {"t": "paired t-test", "sign_flip": "sign-flip test"}[found["test"]]
    p_value = "p < 0.001" if found["p_value"] < 0.001 else f"p = {found['p_value']:.3f}"
    interval = f"{found['mean']:+.4f} ± {found['high'] - found['mean']:.4f}"
    return f"{interval} ({test}, {p_value}, {count(found['count'], 'pair')})"


def _fitting_table(state: Mapping[str, Any], console: Console) -> tuple[Table, list[str]]:
    """Return the fullest table that fits the console, and the headings of numbers that it leaves out."""
    full = _columns(state)
    short = _columns(state, only_ends=True)
    without_seconds = _without(short, (*COSTS, "s"))
    # From the fullest to the narrowest: columns of numbers go first, then the perplexities between the first and the
    # last, and at the end all values share a cell. No cell is ever cut: the last layout is taken however wide it is.
    layouts = [full, _without(full, COSTS), _without(full, (*COSTS, "s")), without_seconds, _merged(without_seconds)]
    columns = next((columns for columns in layouts if _width(columns) <= console.width), layouts[-1])
    return _table(columns, state), [heading for heading in full if heading in NUMBERS and heading not in columns]


def _width(columns: Columns) -> int:
    """Return the width of a table, which Rich only knows once it has laid it out."""
    # cell_len, not len: some characters take two cells of a terminal, and a cell may hold several lines.
    lines = [[line for text in (heading, *cells) for line in text.split("\n")] for heading, cells in columns.items()]
    return sum(max(map(cell_len, column)) for column in lines) + GAP * (len(columns) - 1)


def _table(columns: Columns, state: Mapping[str, Any]) -> Table:
    table, marked = empty_table(columns, right=NUMBERS), _marked(state)
    for trial, cells in zip(state["trials"], zip(*columns.values(), strict=True), strict=True):
        table.add_row(*map(Text, cells), style="bold green" if trial["trial"] in marked else "")
    return table


def shown_trials(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the trials that get a row: all but those on other seeds; of very many, the best and unfinished ones."""
    rows = [trial for trial in state["trials"] if _has_row(trial)]
    if len(rows) <= MOST_ROWS:
        return rows
    best = ranked({trial["trial"]: trial["objectives"] for trial in rows if trial["feasible"]})
    unfinished = [trial["trial"] for trial in rows if trial["status"] == "UNFINISHED"]
    # Half of the rows for each, so that many unfinished trials do not hide the best ones.
    kept = {*best[: MOST_ROWS // 2], *unfinished[: MOST_ROWS // 2]}
    return [trial for trial in rows if trial["trial"] in kept]


def _has_row(trial: Mapping[str, Any]) -> bool:
    return trial["proposer"] not in ON_OTHER_SEEDS


def _marked(state: Mapping[str, Any]) -> set[int]:
    """Return the trials to mark: the best one, or with several objectives the front."""
    return set(state["front"]) if isinstance(state["minimize"], list) else {state["best"]}


def _columns(state: Mapping[str, Any], only_ends: bool = False) -> Columns:
    """Return heading -> cells, one for each trial.

    Args:
        only_ends: show the first and the last perplexity, not those between.
    """
    trials, marked = state["trials"], _marked(state)
    chains = [last_cycle(trial["perplexity"]) for trial in trials]
    phases = [phase for phase in SHOWN_PHASES if any(phase in chain for chain in chains)]
    if only_ends:
        # Without its repetition, where the first is also the last.
        phases = list(dict.fromkeys([*phases[:1], *phases[-1:]]))
    several = any("@" in name for chain in chains for name in chain.values())
    heading = f"perplexity{' (last cycle)' if several else ''}\n{' → '.join(SHOWN_PHASES[phase] for phase in phases)}"
    values = {name: [_value(trial["values"], paths) for trial in trials] for name, paths in _headings(trials).items()}
    return {
        "#": [f"{'*' if trial['trial'] in marked else ''}{trial['trial']}" for trial in trials],
        **values,
        heading.strip(): [_chain(trial, chain, phases) for trial, chain in zip(trials, chains, strict=True)],
        **_metric_columns(trials),
        **_goal_columns(state, trials),
        **_control_columns(trials),
        # Known are params, and with them the heads, as soon as a phase has finished.
        "heads": [f"{trial['active_heads']}/{trial['head_slots']}" if trial["params"] else "–" for trial in trials],
        "params": [_millions(trial["params"], "M") for trial in trials],
        "MFLOP/token": [_millions(trial["flops_per_token"]) for trial in trials],
        "s": [f"{trial['seconds']:.1f}" for trial in trials],
    }


def _metric_columns(trials: Sequence[Mapping[str, Any]]) -> Columns:
    """Return a column for each metric of a classifier; other models have none."""
    names = dict.fromkeys(name for trial in trials for name in trial["metrics"])
    return {name: [_goal(trial["metrics"].get(name)) for trial in trials] for name in names}


def _goal_columns(state: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Columns:
    """Return a column for each of several objectives, and one that says which trials keep the constraints."""
    names = state["minimize"] if isinstance(state["minimize"], list) else []
    columns = {f"↓ {name}": [_goal(trial["objectives"].get(name)) for trial in trials] for name in names}
    if any(trial["violations"] for trial in trials):
        columns["feasible"] = [{True: "yes", False: "no", None: "–"}[trial["feasible"]] for trial in trials]
    return columns


def _goal(value: float | None) -> str:
    """Write a loss or a count: parameters and FLOPs in full, small numbers with four digits."""
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _control_columns(trials: Sequence[Mapping[str, Any]]) -> Columns:
    """Return a column of perplexities for each control arm, and one of recovery where there is a dense arm."""
    arms = dict.fromkeys(arm for trial in trials for arm in trial["controls"])
    columns = {
        arm: [show_perplexity(trial["controls"][arm]["perplexity"]) if arm in trial["controls"] else "–"
              for trial in trials]
        for arm in arms
    }  # fmt: skip
    if "dense" in arms:
        recovered = [trial["recovery"] for trial in trials]
        columns["recovery"] = ["–" if value is None else f"{value:.2f}" for value in recovered]
    return columns


def _headings(trials: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return heading -> the searched settings that it shows: known ones together, others each in a column."""
    searched = {path for trial in trials for path in trial["values"]}
    together = {name: [path for path in paths if path in searched] for name, paths in SHOWN_TOGETHER.items()}
    others = searched.difference(*SHOWN_TOGETHER.values())
    headings = together | {path.removeprefix("cycle."): [path] for path in sorted(others)}
    return {name: paths for name, paths in headings.items() if paths}


def _value(values: Mapping[str, Any], paths: Sequence[str]) -> str:
    """Write the values of a trial under one heading; a dash where its conditions do not hold."""
    chosen = {path: values[path] for path in paths if path in values}
    return " ".join(_percent(value) if path in SHARES else show_value(value) for path, value in chosen.items()) or "–"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _chain(trial: Mapping[str, Any], labels: Mapping[str, str], phases: Sequence[str]) -> str:
    """Write the perplexities of a trial, with ◇ where reused; one that did not complete ends in its status."""
    reached = [labels[phase] for phase in phases if phase in labels]
    shown = [show_perplexity(trial["perplexity"][name]) + "◇" * (name in trial["reused"]) for name in reached]
    return " → ".join([*shown, *([] if trial["status"] == "COMPLETE" else [trial["status"]])])


def _millions(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value / 1e6:.2f}{unit}"


def _without(columns: Columns, headings: Sequence[str]) -> Columns:
    return {heading: cells for heading, cells in columns.items() if heading not in headings}


def _merged(columns: Columns) -> Columns:
    """Put all values of a trial into one cell, which Rich may fold into several lines."""
    # The first heading is the trial's number, which stays a column of its own.
    first, *names = [heading for heading in columns if not heading.startswith("perplexity") and heading != "heads"]
    rows = zip(*(columns[name] for name in names), strict=True)
    values = [", ".join(f"{name} {cell}" for name, cell in zip(names, row, strict=True)) for row in rows]
    merged = {"values": values} if names else {}
    return {first: columns[first], **merged, **_without(columns, [first, *names])}
