"""Sweep folders written by hand: what reports and read-only commands are tested on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.jobs import checked_job

from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord, Proposal, Status, TrialRecord
from raysweep.sweep.code import code_of

SPACE = {
    "cycle.prune.strategy": {"choice": ["taylor", "entropy", "magnitude", "random"]},
    "cycle.prune.direction": {"choice": ["high", "low"], "when": {"cycle.prune.strategy": "entropy"}},
    "cycle.prune.level": {"uniform": [0.1, 0.6], "step": 0.05},
    "cycle.grow.strategy": {"choice": ["gradient_sensitivity", "balanced"]},
    "cycle.grow.ratio": {"uniform": [0.0, 1.0], "step": 0.25},
    "cycle.learn.new_head_lr_multiplier": {"log_uniform": [1.0, 10.0], "when": {"cycle.grow.ratio": {"above": 0}}},
}
JOB: dict[str, Any] = {
    "name": "heads",
    "model": {"name": "gpt2-nano"},
    "cycle": {
        "baseline": {"steps": 100, "lr": 5e-3},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "balanced", "ratio": 0.5},
        "learn": {"steps": 40, "lr": 2e-3},
    },
    "search": {"space": SPACE, "trials": 3},
}
TAYLOR = {
    "cycle.prune.strategy": "taylor",
    "cycle.prune.level": 0.3,
    "cycle.grow.strategy": "gradient_sensitivity",
    "cycle.grow.ratio": 0.25,
    "cycle.learn.new_head_lr_multiplier": 4.123456,
}
ENTROPY = {
    "cycle.prune.strategy": "entropy",
    "cycle.prune.direction": "low",
    "cycle.prune.level": 0.55,
    "cycle.grow.strategy": "balanced",
    "cycle.grow.ratio": 0.0,
}
WHOLE = {"baseline": 40.0, "prune": 50.0, "measure": 50.0, "grow": 50.0, "learn": 42.5}
STEPS = {"baseline": 100, "learn": 40}
HEAD_MAPS = {
    "baseline": [[0, 0, 0, 0], [0, 0, 0, 0]],
    "prune": [[0, 0, -1, 0], [-1, 0, 0, -1]],
    "measure": [[0, 0, -1, 0], [-1, 0, 0, -1]],
    "grow": [[0, 0, 1, 0], [-1, 0, 0, -1]],
    "learn": [[0, 0, 1, 0], [-1, 0, 0, -1]],
}
DECISIONS = {
    "prune": {"strategy": "taylor", "options": {}, "heads": [[0, 2], [1, 0], [1, 3]], "scores": []},
    "grow": {"strategy": "balanced", "options": {}, "heads": [[0, 2]], "scores": []},
}


def job_mapping(**search: Any) -> dict[str, Any]:
    """Return the job with keys of its search changed."""
    job = copy.deepcopy(JOB)
    job["search"].update(search)
    return job


def make_sweep(results: Path, name: str = "heads-1", job: Mapping[str, Any] = JOB) -> SweepFolder:
    """Return the folder of a sweep that has not begun."""
    checked = checked_job(job, "heads.yaml")
    about = {"fingerprints": {}, "sharing": True, "code": code_of(checked)}
    return SweepFolder.create(results, checked, name, about)


def add_trial(
    folder: SweepFolder,
    trial: int,
    values: Mapping[str, Any] = TAYLOR,
    perplexities: Mapping[str, float] = WHOLE,
    *,
    status: Status | None = "COMPLETE",
    reused: Sequence[str] = (),
    attempts: int = 1,
    error: str | None = None,
) -> list[PhaseRecord]:
    """Add a trial with a phase for each label (`prune@2`: of cycle 2); without a status it has not ended."""
    for attempt in range(1, attempts + 1):
        folder.add_proposal(Proposal(trial=trial, values=dict(values), proposer="tpe", seed=0, attempt=attempt))
    phases = [phase_record(trial, label, value, label in reused) for label, value in perplexities.items()]
    for phase in phases:
        folder.add_phase(phase)
    if status is not None:
        folder.add_trial(trial_record(trial, status, phases, values=values, attempts=attempts, error=error))
    return phases


def phase_record(trial: int, label: str, perplexity: float, reused: bool = False) -> PhaseRecord:
    phase, _, cycle = label.partition("@")
    head_map = HEAD_MAPS[phase]
    active = sum(head >= 0 for row in head_map for head in row)
    sample = {"prompt": "the ring", "text": " of [bold]fire[/bold]\n", "repetition": 0.25}
    return PhaseRecord(
        trial=trial, phase=phase, cycle=0 if phase == "baseline" else int(cycle or 1), key=f"{label}-of-{trial}",
        reused=reused, loss=math.log(perplexity) if math.isfinite(perplexity) else 800.0, perplexity=perplexity,
        active_heads=active, head_map=head_map, params=1_000_000 + 10_000 * active, flops_per_token=2e6 + 5e4 * active,
        steps=STEPS.get(phase, 0), tokens=STEPS.get(phase, 0) * 1024, seconds=0.1 if reused else 2.0,
        decision=DECISIONS.get(phase), samples=[sample] if phase in ("baseline", "measure", "learn") else None,
    )  # fmt: skip


def trial_record(
    trial: int,
    status: Status = "COMPLETE",
    phases: Sequence[PhaseRecord] = (),
    *,
    values: Mapping[str, Any] = TAYLOR,
    objective: float | None = None,
    attempts: int = 1,
    error: str | None = None,
    seconds: float = 12.5,
) -> TrialRecord:
    """Return how a trial ended; one that completed has its last phase's loss as its objective."""
    if status == "COMPLETE" and objective is None and phases:
        objective = phases[-1].loss
    return TrialRecord(
        trial=trial, status=status, values=dict(values), seed=0, proposer="tpe", objective=objective,
        objectives={} if objective is None else {"loss": objective},
        attempts=attempts, phases=[phase.key for phase in phases], seconds=seconds, error=error,
    )  # fmt: skip


def add_on_seed(
    folder: SweepFolder, trial: int, values: Mapping[str, Any], learned: float, *, seed: int = 0,
    proposer: str = "tpe", of: int | None = None, dense: float | None = None, status: Status = "COMPLETE",
) -> None:  # fmt: skip
    """Add a trial that ends with this perplexity on a seed, and where asked with a dense control arm."""
    folder.add_proposal(Proposal(trial=trial, values=dict(values), proposer=proposer, seed=seed, attempt=1, of=of))
    own = [phase_record(trial, "baseline", 40.0), phase_record(trial, "learn", learned)]
    ended = replace(trial_record(trial, status, own, values=values), seed=seed, proposer=proposer, of=of)
    if dense is not None:
        own.append(replace(phase_record(trial, "learn", dense), arm="dense", key=f"dense-of-{trial}"))
        ended = replace(ended, controls={"dense": [own[0].key, own[-1].key]})
    for phase in own:
        folder.add_phase(phase)
    folder.add_trial(ended)


def finished_sweep(results: Path, name: str = "heads-1") -> SweepFolder:
    """Return a sweep of three trials, the second the best; the last failed."""
    folder = make_sweep(results, name)
    add_trial(folder, 1)
    add_trial(folder, 2, ENTROPY, {**WHOLE, "learn": 41.25}, reused=["baseline"], attempts=2)
    error = "grow: gave up after 3 attempts: rank 0: Traceback\n  File x\nRuntimeError: no [space] left"
    add_trial(folder, 3, perplexities={"baseline": 40.0, "prune": 60.0}, status="FAILED", reused=["baseline"],
              error=error)  # fmt: skip
    folder.add_lane({"lane": "lane-0", "group": "g", "pids": [1, 2]})
    return folder


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each file's and folder's time of change and text, to see whether anything was written."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in paths}
