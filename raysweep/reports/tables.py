"""Rich tables for people; the same content as the JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysweep.archive import ON_OTHER_SEEDS
from raysweep.objectives import ranked
from raysweep.reports.conclusions import (
    conclusion,
    halt_text,
    missed_lines,
    show_mean,
    show_perplexity,
    stopped_lines,
    trouble_lines,
    work_done,
)
from raysweep.wording import count

SHOWN_TOGETHER = {
    # heading: the settings that one column shows
    "prune": ("cycle.prune.strategy", "cycle.prune.direction", "cycle.prune.level"),
    "grow": ("cycle.grow.strategy", "cycle.grow.ratio"),
    "lr x": ("cycle.learn.new_head_lr_multiplier",),
    "lr": ("cycle.learn.lr",),
}
SHARES = ("cycle.prune.level", "cycle.grow.ratio")
SHOWN_PHASES = {"baseline": "base", "measure": "pruned", "grow": "grown", "learn": "learned", "infer": "inferred"}
COSTS = ("params", "MFLOP/token")
MOST_ROWS = 200
GAP = 2
"""Blanks between two columns."""
NUMBERS = ("#", "heads", "recovery", *COSTS, "s")
Columns = dict[str, list[str]]


def print_sweep(state: Mapping[str, Any], console: Console) -> None:
    """Print a sweep: one line a trial, then its points over their seeds, what went wrong, the best trial, and the work.

    Trials on other seeds stand with their points.
    """
    _say(console, f"{state['sweep']}   {state['model']} on {state['data']}")
    if state["trials"]:
        shown = shown_trials(state)
        table, left_out = _fitting_table({**state, "trials": shown}, console)
        console.print(table)
        if hidden := sum(_has_row(trial) for trial in state["trials"]) - len(shown):
            _say(console, f"left out here for want of room, but in --json: {count(hidden, 'trial')} that are no better")
        if left_out:
            _say(console, f"left out here for want of width, but in --json: {', '.join(left_out)}")
    for line in (*trouble_lines(state), *stopped_lines(state), *missed_lines(state)):
        _say(console, line)
    rows = {trial["trial"] for trial in shown_trials(state)}
    if points := [point for point in state["points"] if point["trial"] in rows]:
        print_points(points, console)
    _say(console, f"{conclusion(state)}\n{work_done(state)}")


def print_heads(content: Mapping[str, Any], console: Console) -> None:
    """Print an analysis of heads: its loss, and of every score the mean and the heads at both ends.

    Heads that are silenced count in neither.
    """
    masked = {tuple(slot) for slot in content["mask"]}
    mask = ", ".join(f"{layer}.{head}" for layer, head in content["mask"])
    _say(
        console,
        f"{content['model']} on {content['data']}: loss {content['loss']:.4f}, perplexity "
        f"{show_perplexity(content['perplexity'])} over {content['predictions']} predictions"
        + (f", without {mask}" if mask else ""),
    )
    if content["absent"]:
        _say(console, f"{count(len(content['absent']), 'head')} of the full shape absent")
    table = Table("score", "mean", "lowest heads", "highest heads")
    for name, rows in content["scores"].items():
        heads = [
            (value, f"{layer}.{head} ({value:.3g})")
            for layer, row in enumerate(rows) for head, value in enumerate(row)
            if value is not None and (layer, head) not in masked
        ]  # fmt: skip
        heads.sort(key=lambda entry: entry[0])
        if heads:
            mean = sum(value for value, _ in heads) / len(heads)
            ends = [", ".join(shown for _, shown in end) for end in (heads[:3], heads[:-4:-1])]
            table.add_row(name, f"{mean:.4g}", *ends)
    console.print(table)


def print_points(points: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print points over their seeds: means, and how they differ from the best point and from their control arms."""
    names = list(points[0]["objectives"])
    arms = dict.fromkeys(arm for point in points for arm in point["against_controls"])
    several = len(names) > 1
    against = {f"{name + ' ' if several else ''}against the best": name for name in names}
    table = _empty_table(
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
    _say(console, "over seeds: means and paired differences, each ± half of its 95% interval; p of the difference")
    console.print(table)


def show_value(value: Any) -> str:
    """Write a value as it stands in YAML, rounded."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def last_cycle(perplexity: Mapping[str, float]) -> dict[str, str]:
    """Return phase -> label of what to show: the baseline, and the last cycle's phases that change the number."""
    names = [name for name in perplexity if name.partition("@")[0] in SHOWN_PHASES]
    last = max((int(name.partition("@")[2] or 1) for name in names), default=1)
    kept = [name for name in names if name == "baseline" or int(name.partition("@")[2] or 1) == last]
    return {name.partition("@")[0]: name for name in kept}


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    if found["p_value"] is None:
        return f"{found['mean']:+.4f}"
    how = {"t": "t", "sign_flip": "sign flip"}[found["test"]]
    p_value = "p < 0.001" if found["p_value"] < 0.001 else f"p {found['p_value']:.3f}"
    return f"{found['mean']:+.4f} ± {found['high'] - found['mean']:.4f} ({p_value}, {how})"


def _fitting_table(state: Mapping[str, Any], console: Console) -> tuple[Table, list[str]]:
    """Return the fullest table that fits, and the headings that it leaves out: no cell is ever cut."""
    full = _columns(state)
    short = _columns(state, only_ends=True)
    without_seconds = _without(short, (*COSTS, "s"))
    layouts = [full, _without(full, COSTS), _without(full, (*COSTS, "s")), without_seconds, _merged(without_seconds)]
    columns = next((columns for columns in layouts if _width(columns) <= console.width), layouts[-1])
    return _table(columns, state), [heading for heading in full if heading in NUMBERS and heading not in columns]


def _width(columns: Columns) -> int:
    """Return how wide a table would be; Rich would have to lay it out to say so."""
    lines = [[line for text in (heading, *cells) for line in text.split("\n")] for heading, cells in columns.items()]
    return sum(max(map(cell_len, column)) for column in lines) + GAP * (len(columns) - 1)


def _table(columns: Columns, state: Mapping[str, Any]) -> Table:
    table, marked = _empty_table(columns, right=NUMBERS), _marked(state)
    for trial, cells in zip(state["trials"], zip(*columns.values(), strict=True), strict=True):
        table.add_row(*map(Text, cells), style="bold green" if trial["trial"] in marked else "")
    return table


def shown_trials(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the trials that get a row: all but those on other seeds; of very many the best, and those still open."""
    rows = [trial for trial in state["trials"] if _has_row(trial)]
    if len(rows) <= MOST_ROWS:
        return rows
    best = ranked({trial["trial"]: trial["objectives"] for trial in rows if trial["feasible"]})
    unfinished = [trial["trial"] for trial in rows if trial["status"] == "UNFINISHED"]
    kept = {*best[: MOST_ROWS // 2], *unfinished[: MOST_ROWS // 2]}
    return [trial for trial in rows if trial["trial"] in kept]


def _has_row(trial: Mapping[str, Any]) -> bool:
    return trial["proposer"] not in ON_OTHER_SEEDS


def _marked(state: Mapping[str, Any]) -> set[int]:
    """Return the trials to mark: the best one, or of several objectives the front."""
    return set(state["front"]) if isinstance(state["minimize"], list) else {state["best"]}


def _empty_table(headings: Iterable[str], right: Collection[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), justify="right" if heading in right else "left", overflow="fold")
    return table


def _columns(state: Mapping[str, Any], only_ends: bool = False) -> Columns:
    """Return heading -> cells, one a trial; with only the first and the last perplexity where asked."""
    trials, marked = state["trials"], _marked(state)
    chains = [last_cycle(trial["perplexity"]) for trial in trials]
    phases = [phase for phase in SHOWN_PHASES if any(phase in chain for chain in chains)]
    if only_ends:
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
        "heads": [f"{trial['active_heads']}/{trial['head_slots']}" if trial["params"] else "–" for trial in trials],
        "params": [_millions(trial["params"], "M") for trial in trials],
        "MFLOP/token": [_millions(trial["flops_per_token"]) for trial in trials],
        "s": [f"{trial['seconds']:.1f}" for trial in trials],
    }


def _metric_columns(trials: Sequence[Mapping[str, Any]]) -> Columns:
    """Return a column for each metric of a classifier; of other models none."""
    names = dict.fromkeys(name for trial in trials for name in trial["metrics"])
    return {name: [_goal(trial["metrics"].get(name)) for trial in trials] for name in names}


def _goal_columns(state: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Columns:
    """Return a column for each of several objectives, and one that says who keeps to the constraints."""
    names = state["minimize"] if isinstance(state["minimize"], list) else []
    columns = {f"↓ {name}": [_goal(trial["objectives"].get(name)) for trial in trials] for name in names}
    if any(trial["violations"] for trial in trials):
        columns["feasible"] = [{True: "yes", False: "no", None: "–"}[trial["feasible"]] for trial in trials]
    return columns


def _goal(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _control_columns(trials: Sequence[Mapping[str, Any]]) -> Columns:
    """Return a column of perplexities for each control arm, and one of recovery where there is any."""
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
    """Return heading -> searched paths that it stands for."""
    searched = {path for trial in trials for path in trial["values"]}
    together = {name: [path for path in paths if path in searched] for name, paths in SHOWN_TOGETHER.items()}
    others = searched.difference(*SHOWN_TOGETHER.values())
    headings = together | {path.removeprefix("cycle."): [path] for path in sorted(others)}
    return {name: paths for name, paths in headings.items() if paths}


def _value(values: Mapping[str, Any], paths: Sequence[str]) -> str:
    """Write what a trial chose under one heading; a dash where its conditions did not hold."""
    chosen = {path: values[path] for path in paths if path in values}
    return " ".join(_percent(value) if path in SHARES else show_value(value) for path, value in chosen.items()) or "–"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _chain(trial: Mapping[str, Any], labels: Mapping[str, str], phases: Sequence[str]) -> str:
    """Write a trial's perplexities; one that did not complete ends in its status."""
    reached = [labels[phase] for phase in phases if phase in labels]
    shown = [show_perplexity(trial["perplexity"][name]) + "◇" * (name in trial["reused"]) for name in reached]
    return " → ".join([*shown, *([] if trial["status"] == "COMPLETE" else [trial["status"]])])


def _millions(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value / 1e6:.2f}{unit}"


def _without(columns: Columns, headings: Sequence[str]) -> Columns:
    return {heading: cells for heading, cells in columns.items() if heading not in headings}


def _merged(columns: Columns) -> Columns:
    """Put all values of a trial into one cell, which may fill several lines."""
    first, *names = [heading for heading in columns if not heading.startswith("perplexity") and heading != "heads"]
    rows = zip(*(columns[name] for name in names), strict=True)
    values = [", ".join(f"{name} {cell}" for name, cell in zip(names, row, strict=True)) for row in rows]
    merged = {"values": values} if names else {}
    return {first: columns[first], **merged, **_without(columns, [first, *names])}


def print_trial(state: Mapping[str, Any], console: Console) -> None:
    """Print one trial: values, phases, decisions, rank agreement of scores, head map, samples."""
    again = f"   {state['attempts']} attempts" if state["attempts"] > 1 else ""
    _say(console, f"{state['sweep']} trial {state['trial']}: {state['status']}   {state['seconds']:.1f} s{again}")
    if state["of"] is not None:
        _say(console, f"  {state['proposer']} of trial {state['of']}, seed {state['seed']}")
    for path, value in state["values"].items():
        _say(console, f"  {path}: {show_value(value)}")
    if state["error"]:
        _say(console, f"error: {state['error'].rstrip()}")
    if state["stopped"]:
        _say(console, f"stopped: {state['stopped']}")
    for rule, amount in state["violations"].items():
        _say(console, f"  {rule}: {'kept' if amount <= 0 else f'missed by {amount:.4g}'}")
    if not state["phases"]:
        _say(console, "no phase finished.")
        return
    numbers = ("loss", "perplexity", "heads", *COSTS, "steps", "s")
    table = _empty_table(("phase", *numbers), right=numbers)
    for phase in [*state["phases"], *state["control_phases"]]:
        table.add_row(
            _name(phase) + ("◇" if phase["reused"] else ""),
            f"{phase['loss']:.4f}", show_perplexity(phase["perplexity"]), str(phase["active_heads"]),
            f"{phase['params']:,}", f"{phase['flops_per_token'] / 1e6:.3f}", str(phase["steps"]),
            f"{phase['seconds']:.1f}",
        )  # fmt: skip
    console.print(table)
    for phase in [*state["phases"], *state["control_phases"]]:
        if phase["reported"] is not None:
            _say(console, exit_text(phase))
    if state["recovery"] is not None:
        _say(console, f"recovery {state['recovery']:.2f} of the loss between pruned and the dense control")
    if state["halted"]:
        _say(console, halt_text(state["halted"]))
    for phase in state["phases"]:
        for act in [phase, *(phase["events"] or [])]:
            before = f", step {act['step']}" if "step" in act else ""
            for found in (decision_text(act) if act.get("decision") else "", agreement_text(act)):
                if found:
                    _say(console, f"{act['phase']} {act['cycle']}{before}: {found}")
    _say(console, "heads by layer (■ original, ▲ grown, · absent)")
    for layer, row in enumerate(state["phases"][-1]["head_map"]):
        _say(console, f"  {layer:>2} " + "".join("·" if head < 0 else "▲" if head else "■" for head in row))
    for phase in state["phases"]:
        for sample in (phase["samples"] or [])[:1]:
            text = f"{sample['prompt']!r} → {sample['text']!r}  (repetition {sample['repetition']:.0%})"
            _say(console, f"after {_name(phase)}: {text}")


def decision_text(phase: Mapping[str, Any]) -> str:
    """Say what prune or grow decided; heads as layer.head."""
    decision = phase["decision"]
    verb = "removed" if phase["phase"] == "prune" else "grew"
    heads = " ".join(f"{layer}.{head}" for layer, head in decision["heads"])
    return f"{decision['strategy']} {verb} {len(decision['heads'])}" + (f": {heads}" if heads else "")


def agreement_text(phase: Mapping[str, Any]) -> str:
    """Say how far each score ranks heads as their contributions do, the best first; nothing where that was not asked.

    A dash stands for a score that is equal for all heads.
    """
    found = phase.get("agreement") or {}
    best_first = sorted(found.items(), key=lambda item: (item[1]["global"] is None, -(item[1]["global"] or 0.0)))
    both = (f"{name} {_rank(kinds['global'])} ({_rank(kinds['layer_centred'])})" for name, kinds in best_first)
    return f"rank agreement with contribution, global (layer-centred): {', '.join(both)}" if found else ""


def _rank(correlation: float | None) -> str:
    return "–" if correlation is None else f"{correlation:.2f}"


def exit_text(phase: Mapping[str, Any]) -> str:
    """Say what came of letting tokens leave: on the half that was searched on, and on the other."""
    halves = {"searched on": phase, "reported": phase["reported"]}
    said = "; ".join(
        f"{half}: accuracy {numbers['accuracy']:.2%}, loss {numbers['loss']:.4f}, {numbers['mean_steps']:.2f} steps "
        f"and {numbers['flops_per_token'] / 1e6:.3f} MFLOP a token"
        for half, numbers in halves.items()
    )
    return f"{_name(phase)}: {said}"


def _name(phase: Mapping[str, Any]) -> str:
    arm = "" if phase["arm"] == "main" else f"{phase['arm']}: "
    return arm + phase["phase"] + (f" {phase['cycle']}" if phase["cycle"] else "")


def print_listing(content: Mapping[str, Sequence[Mapping[str, str]]], console: Console) -> None:
    """Print names and what they are, kind by kind."""
    for kind, entries in content.items():
        _say(console, kind, style="bold")
        table = Table(box=None, show_header=False, pad_edge=False)
        for entry in entries:
            table.add_row(Text(f"  {entry['name']}"), Text(entry["about"]))
        console.print(table if entries else "  none yet")


def print_examination(findings: Sequence[Any], console: Console) -> None:
    """Print what the doctor found."""
    marks = {"ok": ("✓", "green"), "note": ("!", "yellow"), "bad": ("✗", "red")}
    for finding in findings:
        text = Text.assemble(marks[finding.status], f" {finding.what}: {finding.found}")
        console.print(text, soft_wrap=True)


def _say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: no markup, no colours of Rich's own, no breaks."""
    console.print(Text(text, style=style), soft_wrap=True)
