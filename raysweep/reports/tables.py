"""Rich tables for people; the same content as the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from raysweep.reports.progress import duration

SHOWN_NAMES = {
    "cycle.prune.strategy": "prune",
    "cycle.prune.direction": "direction",
    "cycle.prune.level": "level",
    "cycle.prune.budget": "budget",
    "cycle.grow.strategy": "grow",
    "cycle.grow.ratio": "ratio",
    "cycle.grow.init": "init",
    "cycle.learn.new_head_lr_multiplier": "lr x",
    "cycle.learn.lr": "lr",
}
SHOWN_PHASES = {"baseline": "base", "measure": "pruned", "grow": "grown", "learn": "learned"}


def print_sweep(state: Mapping[str, Any], console: Console) -> None:
    """Print a sweep: one line a trial, then its best trial and what was run to get there."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    paths = value_paths(state["trials"])
    for heading in ("#", *(short_name(path) for path in paths)):
        table.add_column(heading, justify="right" if heading == "#" else "left", no_wrap=True)
    for heading in ("perplexity " + " → ".join(SHOWN_PHASES.values()), "heads", "params", "MFLOP/token", "s", ""):
        table.add_column(heading, justify="left" if "→" in heading or not heading else "right", no_wrap=True)
    for trial in state["trials"]:
        style = "bold green" if trial["trial"] == state["best"] else ""
        table.add_row(*_cells(trial, paths), style=style)
    console.print(table)
    console.print(f"{conclusion(state)}\n{work_done(state)}", highlight=False, soft_wrap=True)


def value_paths(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every searched path, in the order of the table."""
    seen = dict.fromkeys(path for trial in trials for path in trial["values"])
    order = list(SHOWN_NAMES)
    return sorted(seen, key=lambda path: (order.index(path) if path in order else len(order), path))


def short_name(path: str) -> str:
    return SHOWN_NAMES.get(path, path.removeprefix("cycle."))


def show_value(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def conclusion(state: Mapping[str, Any]) -> str:
    """Say which trial is best, and how far one should trust that."""
    best = next((trial for trial in state["trials"] if trial["trial"] == state["best"]), None)
    if best is None:
        return "no trial completed."
    final = list(best["perplexity"].values())[-1]
    heads = f"{best['active_heads']} heads" if best["active_heads"] is not None else ""
    text = f"best trial {best['trial']}: perplexity {final:.2f} with {heads}."
    return text if state["planned"] == 1 else f"{text} One seed each: not yet a finding."


def work_done(state: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {status.lower()}" for status, count in sorted(state["counts"].items()))
    groups = state["worker_groups_started"]
    return (
        f"{counts} of {state['planned']} trials · {state['phases_run']} phases run, {state['phases_reused']} reused · "
        f"{state['steps_run']} training steps · {groups} worker group{'s' if groups != 1 else ''} started"
    )


def _cells(trial: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    perplexities = [
        f"{trial['perplexity'][phase]:.1f}" + ("◇" if phase in trial["reused"] else "")
        for phase in last_cycle(trial["perplexity"])
    ]
    params = f"{trial['params'] / 1e6:.2f}M" if trial["params"] is not None else "–"
    flops = f"{trial['flops_per_token'] / 1e6:.2f}" if trial["flops_per_token"] is not None else "–"
    return [
        str(trial["trial"]),
        *(show_value(trial["values"].get(path)) for path in paths),
        " → ".join(perplexities) or "–",
        str(trial["active_heads"] if trial["active_heads"] is not None else "–"),
        params,
        flops,
        f"{trial['seconds']:.1f}",
        "" if trial["status"] == "COMPLETE" else trial["status"],
    ]


def last_cycle(perplexity: Mapping[str, float]) -> list[str]:
    """Return the labels to show: the baseline, then the phases of the last cycle that change the number."""
    names = [name for name in perplexity if name.partition("@")[0] in SHOWN_PHASES]
    suffixes = [name.partition("@")[2] for name in names]
    last = max(suffixes, key=lambda text: int(text or 1), default="")
    return [name for name in names if name == "baseline" or name.partition("@")[2] == last]


def print_trial(state: Mapping[str, Any], console: Console) -> None:
    """Print one trial: values, phases, decisions, head map, samples."""
    values = (
        ", ".join(f"{path} = {show_value(value)}" for path, value in state["values"].items()) or "the job's own values"
    )
    console.print(
        f"{state['sweep']} trial {state['trial']}: {state['status']}   {values}", highlight=False, soft_wrap=True
    )
    if state["error"]:
        console.print(f"error: {state['error']}", highlight=False, soft_wrap=True, markup=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("phase", "loss", "perplexity", "heads", "params", "MFLOP/token", "steps", "s", "decision"):
        table.add_column(heading, justify="left" if heading in ("phase", "decision") else "right", no_wrap=True)
    for phase in state["phases"]:
        table.add_row(
            phase["phase"] + (f" {phase['cycle']}" if phase["cycle"] else "") + (" ◇" if phase["reused"] else ""),
            f"{phase['loss']:.4f}", f"{phase['perplexity']:.2f}", str(phase["active_heads"]),
            f"{phase['params']:,}", f"{phase['flops_per_token'] / 1e6:.3f}", str(phase["steps"]),
            f"{phase['seconds']:.1f}", decision_text(phase),
        )  # fmt: skip
    console.print(table)
    for phase in state["phases"][-1:]:
        console.print("heads by layer (■ original, ▲ grown, · absent)")
        for layer, row in enumerate(phase["head_map"]):
            marks = "".join("·" if head < 0 else "▲" if head else "■" for head in row)
            console.print(f"  {layer:>2} {marks}", highlight=False)
    for phase in state["phases"]:
        for sample in (phase["samples"] or [])[:1]:
            text = f"after {phase['phase']}: {sample['prompt']!r} → {sample['text']!r}  (repetition {sample['repetition']:.0%})"
            console.print(text, highlight=False, soft_wrap=True, markup=False)


def decision_text(phase: Mapping[str, Any]) -> str:
    """Say what prune or grow decided."""
    decision = phase["decision"]
    if not decision:
        return ""
    heads = " ".join(f"{layer}.{head}" for layer, head in decision["heads"])
    verb = "removed" if phase["phase"] == "prune" else "grew"
    return f"{decision['strategy']} {verb} {len(decision['heads'])}: {heads}"


def print_estimate(job: Mapping[str, Any], estimate: Mapping[str, Any], console: Console) -> None:
    """Print what a job would do and take."""
    scale = job["scale"]
    saved = 1 - estimate["steps_shared"] / estimate["steps"] if estimate["steps"] else 0.0
    rows = [
        ("model", f"{job['model']['name']}, {estimate['parameters']:,} parameters"),
        ("data", f"{job['data']['name']}, windows of {job['data']['seq_len']} tokens"),
        ("trials", f"{estimate['trials']} on {scale['lanes']} lane(s) of {scale['workers']} worker(s)"),
        ("phases of a trial", " → ".join(phase["phase"] for phase in estimate["example"])),
        ("phases", f"{estimate['phases']}, of which {estimate['phases_shared']} are run and the others reused"),
        (
            "training steps",
            f"{estimate['steps_shared']:,} instead of {estimate['steps']:,} ({saved:.0%} fewer by sharing)",
        ),
        ("time", f"about {duration(estimate['seconds'])} (judged by {estimate['seconds_from']})"),
        ("memory", f"about {estimate['worker_memory_bytes'] / 2**30:.1f} GiB a worker"),
        ("disk", f"about {estimate['disk_bytes'] / 2**30:.2f} GiB of checkpoints"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if estimate["trials"] > 1:
        console.print("sharing is counted on values drawn at random; the sampler may draw others.", soft_wrap=True)


def print_listing(content: Mapping[str, Sequence[Mapping[str, str]]], console: Console) -> None:
    """Print names and what they are, kind by kind."""
    for kind, entries in content.items():
        console.print(f"[bold]{kind}[/bold]")
        table = Table(box=None, show_header=False, pad_edge=False)
        for entry in entries:
            table.add_row(f"  {entry['name']}", entry["about"])
        console.print(table if entries else "  none yet")


def print_examination(findings: Sequence[Any], console: Console) -> None:
    """Print what the doctor found."""
    marks = {"ok": "[green]✓[/green]", "note": "[yellow]![/yellow]", "bad": "[red]✗[/red]"}
    for finding in findings:
        console.print(f"{marks[finding.status]} {finding.what}: {finding.found}", highlight=False, soft_wrap=True)
