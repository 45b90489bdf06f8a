"""What can be named in a job, and the sweeps there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysweep.errors import UsageError, known_names_hint
from raysweep.job import registry
from raysweep.job.names import DIGITS, EMBEDDED, GLUE, HUB
from raysweep.job.registry import scratch_sizes
from raysweep.records.folder import SweepFolder
from raysweep.records.results import list_sweeps
from raysweep.reports.summary import sweep_state

STRATEGIES = ("prune", "grow", "init", "samplers", "schedulers", "tasks", "exits", "analyses")


def listing(kind: str | None, results: Path) -> dict[str, list[dict[str, Any]]]:
    """Return everything of one kind, or of all kinds: a name and a line about it each.

    Raises:
        UsageError: no such kind.
    """
    kinds = (*STRATEGIES, "models", "data", "sweeps")
    if kind is not None and kind not in kinds:
        raise UsageError(f"list: {known_names_hint(kind, kinds)}")
    return {name: _entries(name, results) for name in kinds if kind in (None, name)}


def _entries(kind: str, results: Path) -> list[dict[str, Any]]:
    if kind == "sweeps":
        return [_sweep(SweepFolder(results / name)) for name in list_sweeps(results)]
    if kind == "data":
        embedded = {"name": EMBEDDED, "about": "English reference text that ships inside Python; needs no download"}
        digits = {
            "name": DIGITS,
            "about": "8 x 8 images of digits that ship inside scikit-learn; for image_classification",
        }
        texts = [{"name": name, "about": f"hub: {where[0]}"} for name, where in HUB.items()]
        sentences = [{"name": name, "about": "hub: nyu-mll/glue; for sequence_classification"} for name in GLUE]
        return [embedded, digits, *texts, *sentences]
    if kind == "models":
        sizes = [{"name": size, "about": f"from scratch, {family}"} for size, family in sorted(scratch_sizes().items())]
        families = [
            {"name": f"<any {name}>", "about": registry.first_line("models", name)}
            for name in registry.available("models")
        ]
        return [*sizes, *families]
    return [{"name": name, "about": registry.first_line(kind, name)} for name in registry.available(kind)]


def _sweep(folder: SweepFolder) -> dict[str, Any]:
    try:
        state = sweep_state(folder)
    except UsageError as error:  # of another version, or damaged: no reason to hide the others
        return {"name": folder.name, "about": f"cannot be read: {error}"}
    best = next((trial for trial in state["trials"] if trial["trial"] == state["best"]), None)
    name = next(iter(best["objectives"])) if best else ""
    found = f", best {name} {best['objective']:.4f}" if best else ""
    ended = sum(number for status, number in state["counts"].items() if status != "UNFINISHED")
    progress = f"{ended} of {state['planned']} trials{found}"
    return {"name": folder.name, "about": f"{state['model']} on {state['data']}: {progress}"}
