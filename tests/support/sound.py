"""A sweep written by hand in which every invariant holds, to break one or to damage its records."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from support.sweeps import ENTROPY, TAYLOR, job_mapping, make_sweep, phase_record, trial_record

from raysweep.job.plan import LOG_EVERY
from raysweep.records import atomic_folders as entries
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord, Proposal, Retry, Status

STATES = {"COMPLETE": 1, "STOPPED": 2, "DIVERGED": 3, "FAILED": 3}
LABELS = ("baseline", "prune", "measure", "grow", "learn")


def curve(steps: int) -> list[dict[str, float]]:
    points = [*range(LOG_EVERY, steps, LOG_EVERY), steps] if steps else []
    return [{"step": float(step), "loss": 3.0 - step / 1000, "lr": 0.1, "gradient_norm": 1.0} for step in points]


def phase(trial: int, label: str, key: str | None = None, perplexity: float = 40.0, **changes: Any) -> PhaseRecord:
    record = phase_record(trial, label, perplexity)
    key = key or ("baseline" if label == "baseline" else record.key)  # all trials share their baseline
    return replace(record, key=key, curve=curve(record.steps), **changes)


def propose(folder: SweepFolder, trial: int, values: Any = TAYLOR, attempt: int = 1, proposer: str = "tpe") -> None:
    folder.add_proposal(Proposal(trial=trial, values=dict(values), proposer=proposer, attempt=attempt, seed=0))


def tell(folder: SweepFolder, trial: int | None, state: int) -> None:
    line: dict[str, Any] = {"op_code": 4, "worker_id": "w", "study_id": 0, "datetime_start": "2026-01-01T00:00:00"}
    if trial is not None:
        line |= {"state": state, "values": None, "user_attrs": {"trial": trial}}
    with (folder.path / "study.journal").open("a") as journal:
        journal.write(json.dumps(line) + "\n")


def end(folder: SweepFolder, trial: int, phases: list[PhaseRecord], status: Status = "COMPLETE", **about: Any) -> None:
    for phase in phases:
        folder.add_phase(phase)
    record = trial_record(trial, status, phases, **about)
    goals = {} if record.objective is None else {"loss": record.objective}
    folder.add_trial(replace(record, objectives=goals))
    tell(folder, trial, STATES[status])


def store(folder: SweepFolder, phases: list[PhaseRecord]) -> None:
    folder.store.mkdir(exist_ok=True)
    for number, record in enumerate(phases):
        history = [earlier.key for earlier in phases[: number + 1]]
        outcome = {"trial": record.trial, "record": record.to_dict(), "reference_entropy": None, "history": history}
        with entries.appearing(folder.store / record.key, folder.store) as entry:
            (entry / "outcome.json").write_text(json.dumps(outcome))
            for name in ("tensors",) * bool(record.steps) + ("slices",) * bool(record.decision):
                save_file({"weights": np.arange(10.0)}, entry / f"{name}.safetensors")


def whole(trial: int, learned: float = 40.0) -> list[PhaseRecord]:
    """Return the phases of a trial; all trials have the same baseline."""
    return [phase(trial, label, perplexity=learned if label == "learn" else 40.0) for label in LABELS]


def sound(results: Path, **search: Any) -> SweepFolder:
    """Return a finished sweep: its best trial, one that took two attempts, one that diverged, and one stopped."""
    folder = make_sweep(results, job={**job_mapping(trials=4, **search), "scale": {"checkpoint_every_steps": 20}})
    (folder.path / "study.journal").write_text('{"op_code": 0, "study_name": "raysweep", "directions": [1]}\n')
    for trial in range(1, 5):
        propose(folder, trial, ENTROPY if trial == 2 else TAYLOR)
    end(folder, 1, whole(1))
    end(folder, 2, whole(2, learned=41.0), values=ENTROPY, attempts=2)
    end(folder, 3, [phase(3, "baseline")], "DIVERGED", error="loss is nan")
    end(folder, 4, [phase(4, "baseline"), phase(4, "prune")], "STOPPED")
    folder.add_retry(Retry(trial=2, attempt=2, phase="learn", cycle=1, reached=30, resumed_at=20, interval=20))
    folder.add_lane({"lane": "lane-0", "group": "g", "pids": [os.getpid()]})  # alive, but no worker of Ray
    store(folder, whole(1))
    return folder


def rewrite(folder: SweepFolder, file: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    lines = [json.loads(line) for line in (folder.path / file).read_text().splitlines()]
    change(lines)
    (folder.path / file).write_text("".join(json.dumps(line) + "\n" for line in lines))


def damage(folder: SweepFolder, file: str, number: int, change: Callable[[bytes], bytes]) -> None:
    """Change one line of a file, its end excepted."""
    lines = (folder.path / file).read_bytes().splitlines()
    lines[number - 1] = change(lines[number - 1])
    (folder.path / file).write_bytes(b"".join(line + b"\n" for line in lines))
