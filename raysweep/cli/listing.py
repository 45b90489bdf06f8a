"""Collect what can be named in a job, the jobs, and the sweeps, each with a line about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysweep.errors import UsageError, known_names_hint
from raysweep.job import registry
from raysweep.job.names import DIGITS, EMBEDDED, GLUE, HUB
from raysweep.job.registry import scratch_sizes
from raysweep.job.shipped import shipped_files
from raysweep.records.folder import SweepFolder
from raysweep.records.results import list_sweeps
from raysweep.reports.summary import sweep_state

STRATEGIES = ("prune", "grow", "init", "samplers", "schedulers", "tasks", "exits", "analyses")


def listing(kind: str | None, results: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the names of one kind, or of all kinds, each with a line about it.

    Raises:
        UsageError: no such kind.
    """
    kinds = (*STRATEGIES, "models", "data", "jobs", "sweeps")
    if kind is not None and kind not in kinds:
        raise UsageError(f"list: {known_names_hint(kind, kinds)}")
    return {name: _entries(name, results) for name in kinds if kind in (None, name)}


def _entries(kind: str, results: Path) -> list[dict[str, Any]]:
    if kind == "sweeps":
        return [_sweep(SweepFolder(results / name)) for name in list_sweeps(results)]
    if kind == "jobs":
        # A job here takes the place of the shipped one of its name, as when it is run.
        files = {f"jobs/{file.name}": file for file in sorted(Path("jobs").glob("*.yaml"))}
        files |= {name: file for name, file in shipped_files("jobs").items() if name not in files}
        return [{"name": name, "about": purpose(file)} for name, file in files.items()]
    if kind == "data":
        embedded = {"name": EMBEDDED, "about": "English reference text that ships inside Python; needs no download"}
        digits = {
            "name": DIGITS,
            "about": "8 x 8 images of digits that ship inside scikit-learn; for image_classification",
        }
        # Those that need no network come first.
        texts = [{"name": name, "about": f"hub: {where[0]}"} for name, where in HUB.items()]
        # Sets of labelled sentences: they train no language model.
        sentences = [{"name": name, "about": "hub: nyu-mll/glue; for sequence_classification"} for name in GLUE]
        return [embedded, digits, *texts, *sentences]
    if kind == "models":
        # A family is no name for a job: it stands for all models of the hub, and all folders, that are of that family.
        sizes = [{"name": size, "about": f"from scratch, {family}"} for size, family in sorted(scratch_sizes().items())]
        families = [
            {"name": f"<any {name}>", "about": registry.first_line("models", name)}
            for name in registry.available("models")
        ]
        return [*sizes, *families]
    return [{"name": name, "about": registry.first_line(kind, name)} for name in registry.available(kind)]


def purpose(job: Path) -> str:
    """Return what the comment on the first line of a job file says."""
    try:
        with job.open(encoding="utf-8", errors="replace") as file:
            line = file.readline().strip()
    except OSError as error:  # no reason to hide the others
        return f"cannot be read: {error.strerror}"
    return line.lstrip("# ") if line.startswith("#") else "no comment on its first line says what it is for"


def _sweep(folder: SweepFolder) -> dict[str, Any]:
    """Return a sweep with how far it has come and its best objective."""
    try:
        state = sweep_state(folder)
    except UsageError as error:  # of another version, or damaged: no reason to hide the others
        return {"name": folder.name, "about": f"cannot be read: {error}"}
    best = next((trial for trial in state["trials"] if trial["trial"] == state["best"]), None)
    # Of several objectives the first, which is the one in `objective`.
    name = next(iter(best["objectives"])) if best else ""
    found = f", best {name} {best['objective']:.4f}" if best else ""
    # Failed and stopped trials count too: this is about what is still to run.
    ended = sum(number for status, number in state["counts"].items() if status != "UNFINISHED")
    progress = f"{ended} of {state['planned']} trials{found}"
    return {"name": folder.name, "about": f"{state['model']} on {state['data']}: {progress}"}
