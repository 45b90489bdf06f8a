"""Print what a job would do and take: a table, and the phases that its trials share as a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from raysweep.reports.tables.parts import print_line, show_value
from raysweep.reports.wording import count, duration

BRANCHES = (5, 3, 3)
"""How many branches of a stage are printed, by its depth; the others are counted."""
SAMPLE = 50
"""Characters of a split's beginning that are printed."""


def print_estimate(job: Mapping[str, Any], estimate: Mapping[str, Any], console: Console) -> None:
    """Print what a job would do and take."""
    lanes, workers = count(job["scale"]["lanes"], "lane"), count(job["scale"]["workers"], "worker")
    phases, shared = estimate["phases"], estimate["phases_shared"]
    steps, steps_shared = estimate["steps"], estimate["steps_shared"]
    rows = {
        "model": f"{job['model']['name']}, {estimate['parameters']:,} parameters",
        "data": f"{job['data']['name']}, windows of {job['data']['seq_len']} tokens",
        **_data_rows(estimate["data"]),
        "trials": f"{estimate['trials']} on {lanes} of {workers}{_follow_ups(job, estimate['trials'])}",
        "control arms": _arms(job.get("search", {}).get("controls", ()), estimate["trials"]),
        "phases of a trial": " → ".join(phase["phase"] for phase in estimate["example"]),
        "phases": f"{phases}" + (f", of which {shared} are run: {_by_kind(estimate)}" if shared < phases else ""),
        "training steps": f"{steps_shared:,}" + (f" instead of {steps:,}" if steps_shared < steps else ""),
        "sharing": estimate["saving"] if estimate["trials"] > 1 else "",
        "time": _time(estimate),
        "memory": f"about {estimate['worker_memory_bytes'] / 2**30:.1f} GiB a worker",
        "disk": f"about {estimate['disk_bytes'] / 2**30:.2f} GiB of checkpoints at most",
        "budget": _budget(job.get("budget", {}), estimate),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in rows.items():
        if text:  # a job without a budget, or of a single trial, leaves its row empty
            table.add_row(name, Text(text))
    console.print(table)
    if estimate["trials"] > 1:
        # The first stages have no common parent, so the root of the tree is only a holder and is not drawn.
        forest = Tree("", guide_style="dim", hide_root=True)
        _grow(forest, estimate["stages"], BRANCHES)
        console.print(forest)
        picked = "estimate: how much is shared depends on the values that the sampler will pick."
        print_line(
            console, "counted from the very points that the search proposes." if estimate["foreseen"] else picked
        )


def _data_rows(data: Mapping[str, Any]) -> dict[str, str]:
    """Write what is read of the corpus: classes, and of each split its examples, its files and its beginning."""
    rows = {"  classes": ", ".join(data["classes"] or ())}
    for name, split in data["splits"].items():
        # On one line: what matters is whether this is the text that was meant.
        sample = " ".join(split["sample"].split())[:SAMPLE]
        repeated = f", {split['repeated']} of its parts stand in train, too" if split["repeated"] else ""
        begins = f': "{sample}…"' if sample else ""
        rows[f"  {name}"] = f"{split['rows']:,} from {split['origin']}{repeated}{begins}" if split["rows"] else "none"
    return {**rows, "  left out": ", ".join(data["left_out"])}


def _follow_ups(job: Mapping[str, Any], trials: int) -> str:
    """Say how many trials are not part of the search itself."""
    searched = job.get("search", {}).get("trials", 1)
    if trials == searched:
        return ""
    return f"; {searched} of them search, {trials - searched} repeat the best on other seeds"


def _time(estimate: Mapping[str, Any]) -> str:
    seconds, source = estimate["seconds"], estimate["seconds_from"]
    return f"unknown ({source})" if seconds is None else f"about {duration(seconds)} (from {source})"


def _budget(budget: Mapping[str, float], estimate: Mapping[str, Any]) -> str:
    """Write the limits of the job, and which of them the estimate exceeds."""
    # budget.flops is not estimated: it is printed without a verdict.
    needed = {
        "hours": None if estimate["seconds"] is None else estimate["seconds"] / 3600,
        "disk_gb": estimate["disk_bytes"] / 1e9,
    }
    parts = []
    for name, allowed in budget.items():
        short = (needed.get(name) or 0.0) > allowed
        parts.append(f"{name} {allowed:g}" + (", too little: the sweep would stop before its end" if short else ""))
    return "; ".join(parts)


def _by_kind(estimate: Mapping[str, Any]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in estimate["distinct"].items())


def _grow(tree: Tree, stages: Sequence[Mapping[str, Any]], limits: Sequence[int]) -> None:
    """Add the stages that several trials share, up to the first limit, and count the others."""
    shared = [stage for stage in stages if stage["trials"] + stage["arms"] > 1]
    alone = [stage for stage in stages if stage not in shared]
    shown = shared[: limits[0]] if limits else []
    for stage in shown:
        chain, after = _straight(stage)
        # Each level of the tree is a limit further on: where none is left, nothing but counts is added.
        if any(further["trials"] + further["arms"] > 1 for further in after):
            _grow(tree.add(_line(chain)), after, limits[1:])
        else:
            tree.add(_line(chain, "each alone from here" if after else ""))
    if left_out := shared[len(shown) :]:
        # `count` adds an s, which "branch" does not take.
        branches = "1 more branch" if len(left_out) == 1 else f"{len(left_out)} more branches"
        tree.add(Text(f"{branches} of {_users(left_out)}", style="dim"))
    if alone:
        tree.add(Text(f"{_users(alone)} alone", style="dim"))


def _arms(controls: Sequence[str], trials: int) -> str:
    """Write which control arms run beside the trials."""
    beside = f"beside each of {trials} trials" if trials > 1 else "beside the trial"
    return f"{', '.join(controls)}, {beside}" if controls else ""


def _users(stages: Sequence[Mapping[str, Any]]) -> str:
    """Write how many trials, and how many control arms beside them, have one of some stages after the same one."""
    trials, arms = (sum(stage[name] for stage in stages) for name in ("trials", "arms"))
    parts = [count(trials, "trial") if trials else "", count(arms, "control arm") if arms else ""]
    return " and ".join(filter(None, parts))


def _straight(stage: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return a stage with the stages that all its trials run next, and the branches after those."""
    chain = [stage]
    while len(chain[-1]["next"]) == 1 and _users(chain[-1]["next"]) == _users([stage]):
        chain.append(chain[-1]["next"][0])
    return chain, chain[-1]["next"]


def _line(chain: Sequence[Mapping[str, Any]], remark: str = "") -> Text:
    """Write a chain of stages in one line: names, the settings that set it apart, steps and trials."""
    names = " → ".join(stage["phase"] for stage in chain)
    # Only the first stage differs from its siblings: the others of the chain have none.
    apart = ", ".join(f"{name} {show_value(value)}" for name, value in chain[0]["settings"].items())
    steps = sum(stage["steps"] for stage in chain)
    about = [apart, f"{steps:,} steps" if steps else "", _users(chain[:1]), remark]
    return Text("   ".join(filter(None, [names, *about])))
