"""Print a trial, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from raysweep.reports.conclusions import halt_text, show_perplexity
from raysweep.reports.tables.parts import COSTS, empty_table, print_line, show_value


def print_trial(state: Mapping[str, Any], console: Console) -> None:
    """Print one trial: values, phases, decisions, rank agreement of scores, head map, samples."""
    _print_heading(state, console)
    if not state["phases"]:
        print_line(console, "no phase finished.")
        return
    _print_phases([*state["phases"], *state["control_phases"]], console)
    if state["recovery"] is not None:
        print_line(console, f"recovery {state['recovery']:.2f} of the loss between pruned and the dense control")
    if state["halted"]:
        print_line(console, halt_text(state["halted"]))
    _print_decisions(state["phases"], console)
    print_line(console, "heads by layer (■ original, ▲ grown, · absent)")
    for layer, row in enumerate(state["phases"][-1]["head_map"]):
        # A head map holds -1 for an absent head, 0 for an original one, else the cycle in which it was grown.
        print_line(console, f"  {layer:>2} " + "".join("·" if head < 0 else "▲" if head else "■" for head in row))
    for phase in state["phases"]:
        # One sample a phase: the others are in the JSON.
        for sample in (phase["samples"] or [])[:1]:
            text = f"{sample['prompt']!r} → {sample['text']!r}  (repetition {sample['repetition']:.0%})"
            print_line(console, f"after {_name(phase)}: {text}")


def _print_heading(state: Mapping[str, Any], console: Console) -> None:
    """Print how the trial ended, its values, and which constraints it keeps."""
    again = f"   {state['attempts']} attempts" if state["attempts"] > 1 else ""
    print_line(console, f"{state['sweep']} trial {state['trial']}: {state['status']}   {state['seconds']:.1f} s{again}")
    if state["of"] is not None:
        print_line(console, f"  {state['proposer']} of trial {state['of']}, seed {state['seed']}")
    for path, value in state["values"].items():
        print_line(console, f"  {path}: {show_value(value)}")
    if state["error"]:
        print_line(console, f"error: {state['error'].rstrip()}")
    if state["stopped"]:
        print_line(console, f"stopped: {state['stopped']}")
    for rule, amount in state["violations"].items():
        print_line(console, f"  {rule}: {'kept' if amount <= 0 else f'missed by {amount:.4g}'}")


def _print_phases(phases: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a line a phase, then what the early exits of an infer phase did."""
    numbers = ("loss", "perplexity", "heads", *COSTS, "steps", "s")
    table = empty_table(("phase", *numbers), right=numbers)
    for phase in phases:
        table.add_row(
            _name(phase) + ("◇" if phase["reused"] else ""),
            f"{phase['loss']:.4f}", show_perplexity(phase["perplexity"]), str(phase["active_heads"]),
            f"{phase['params']:,}", f"{phase['flops_per_token'] / 1e6:.3f}", str(phase["steps"]),
            f"{phase['seconds']:.1f}",
        )  # fmt: skip
    console.print(table)
    for phase in phases:
        if phase["reported"] is not None:
            print_line(console, exit_text(phase))


def _print_decisions(phases: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print which heads each prune and grow chose, and how far scores agreed with contributions."""
    for phase in phases:
        # A continuous phase prunes and grows inside itself: its events are printed as the phases of a cycle are.
        for act in [phase, *(phase["events"] or [])]:
            before = f", step {act['step']}" if "step" in act else ""
            for found in (decision_text(act) if act.get("decision") else "", agreement_text(act)):
                if found:
                    print_line(console, f"{act['phase']} {act['cycle']}{before}: {found}")


def decision_text(phase: Mapping[str, Any]) -> str:
    """Say which heads a prune or grow chose, as layer.head."""
    decision = phase["decision"]
    verb = "removed" if phase["phase"] == "prune" else "grew"
    heads = " ".join(f"{layer}.{head}" for layer, head in decision["heads"])
    return f"{decision['strategy']} {verb} {len(decision['heads'])}" + (f": {heads}" if heads else "")


def agreement_text(phase: Mapping[str, Any]) -> str:
    """Say how far each score ranks heads as their contributions do, the best score first; "" where none was measured.

    A dash stands for a score that is equal for all heads, which ranks none.
    """
    found = phase.get("agreement") or {}
    # None sorts last: with True in front of its pair it is behind every number.
    best_first = sorted(found.items(), key=lambda item: (item[1]["global"] is None, -(item[1]["global"] or 0.0)))
    both = (f"{name} {_rank(kinds['global'])} ({_rank(kinds['layer_centred'])})" for name, kinds in best_first)
    return f"rank agreement with contribution, global (layer-centred): {', '.join(both)}" if found else ""


def _rank(correlation: float | None) -> str:
    return "–" if correlation is None else f"{correlation:.2f}"


def exit_text(phase: Mapping[str, Any]) -> str:
    """Say how tokens that leave early changed accuracy and cost, on both halves of the held-out examples."""
    # Thresholds are chosen on the first half, which therefore flatters them; the second had no part in it.
    halves = {"searched on": phase, "reported": phase["reported"]}
    said = "; ".join(
        f"{half}: accuracy {numbers['accuracy']:.2%}, loss {numbers['loss']:.4f}, {numbers['mean_steps']:.2f} steps "
        f"and {numbers['flops_per_token'] / 1e6:.3f} MFLOP a token"
        for half, numbers in halves.items()
    )
    return f"{_name(phase)}: {said}"


def _name(phase: Mapping[str, Any]) -> str:
    """Return a phase with its cycle, and with its control arm where it is not the trial's own."""
    arm = "" if phase["arm"] == "main" else f"{phase['arm']}: "
    return arm + phase["phase"] + (f" {phase['cycle']}" if phase["cycle"] else "")
