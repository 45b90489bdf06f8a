"""Print what a sweep in virtual time came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from raysweep.reports.tables.parts import print_line


def print_simulation(found: Mapping[str, Any], job: str, console: Console) -> None:
    """Print trials, phases, steps and time of a simulated sweep, and which of its invariants are broken.

    Args:
        found: the simulation's `Findings` as plain data.
        job: the job as it was named.
    """
    trials = ", ".join(f"{number:,} {status}" for status, number in sorted(found["trials"].items()))
    # Backwards, "run" stands before "reused".
    phases = ", ".join(f"{number:,} {how}" for how, number in sorted(found["phases"].items(), reverse=True))
    # A job may train no step at all.
    share = found["steps"] / found["unshared_steps"] if found["unshared_steps"] else 1.0
    held = sum(not faults for faults in found["invariants"].values())
    # Said first: nobody should take made-up losses for measured ones.
    print_line(console, f"SIMULATED, nothing was trained: {job} on {found['lanes']} lanes")
    for name, text in {
        "trials": trials,
        "phases": phases,
        "steps": f"{found['steps']:,} executed, {share:.1%} of {found['unshared_steps']:,} without sharing",
        "kills": f"{found['kills']:,}, which wasted {found['wasted_steps']:,} steps",
        "time": f"{found['virtual_hours']:.2f} virtual hours, lanes {found['lane_use']:.1%} in use",
        "simulated": f"in {found['seconds']:.1f} s",
        "invariants": f"{held} of {len(found['invariants'])} held",
    }.items():
        print_line(console, f"  {name:<10}  {text}")
    for name, faults in found["invariants"].items():
        for fault in faults:
            print_line(console, f"    broken: {name}: {fault}")
