"""Measure how long commands that read a sweep of 2,000 trials take: status, its check, and a plan.

The records are made up, but as large as GPT-2's (12 layers of 12 heads); nothing here is a result.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reference import figure, write
from raysweep.job.jobfile import Job, load_job
from raysweep.job.plan import LOG_EVERY, Fingerprints, PhasePlan, TrialPlan, make_plan
from raysweep.records import atomic_folders as entries
from raysweep.records.folder import SweepFolder
from raysweep.records.schema import PhaseRecord, Proposal, TrialRecord

REPOSITORY = Path(__file__).resolve().parent.parent
TRIALS = 2000
LAYERS, HEADS = 12, 12
STATISTICS = 10
RUNS = 3
JOB: dict[str, Any] = {
    "name": "many",
    "model": {"name": "gpt2-nano"},
    "cycle": {
        "baseline": {"steps": 500, "lr": 5e-5},
        "prune": {"strategy": "taylor", "level": 0.3},
        "grow": {"strategy": "gradient_sensitivity", "ratio": 0.5},
        "learn": {"steps": 300, "lr": 5e-5},
    },
    "search": {
        "space": {
            "cycle.prune.strategy": {"choice": ["taylor", "fisher", "magnitude", "random"]},
            "cycle.prune.level": {"uniform": [0.1, 0.6], "step": 0.05},
            "cycle.grow.ratio": {"uniform": [0.0, 1.0], "step": 0.1},
            "cycle.learn.new_head_lr_multiplier": {"log_uniform": [1.0, 10.0]},
        },
        "trials": TRIALS,
        "sampler": {"name": "random"},
    },
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        size = make_sweep(results)
        job = results / "many.yaml"
        job.write_text(json.dumps(JOB), encoding="utf-8")  # JSON is YAML
        warm_up(job, results)
        seconds = {
            name: [timed(*arguments, "--results", str(results)) for _ in range(RUNS)]
            for name, arguments in {
                "status": ["status", "many-1", "--json"],
                "table": ["status", "many-1"],
                "check": ["status", "many-1", "--check"],
                "plan": ["plan", str(job), "--json"],
                "plan of one": ["plan", str(job), "--json", "--trials", "1"],
            }.items()
        }
    beyond = [many - one for many, one in zip(seconds["plan"], seconds["plan of one"], strict=True)]
    records = f"{TRIALS} trials, {5 * TRIALS} phase records, {size / 1e6:.0f} MB"
    write(
        "many_trials",
        [
            figure("`raysweep status --json`", seconds["status"], asked="<= 2", unit="s", baseline=records),
            figure("`raysweep status`, the table", seconds["table"], asked="<= 2", unit="s", baseline=records),
            figure("`raysweep status --check`", seconds["check"], asked="-", unit="s", baseline=records),
            figure(
                f"`raysweep plan` of {TRIALS} trials, beyond the plan of one", beyond, asked="<= 2", unit="s",
                baseline="the plan of one trial, below",
            ),
            figure(
                "`raysweep plan` of one trial: torch, transformers and the corpus", seconds["plan of one"],
                asked="-", unit="s", baseline="-",
            ),
        ],
    )  # fmt: skip


def timed(*arguments: str) -> float:
    """Return the wall time of a command in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "raysweep", *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, arguments
    return time.perf_counter() - started


def warm_up(job: Path, results: Path) -> None:
    """Tokenize the corpus and read everything from the disk once."""
    timed("plan", str(job), "--trials", "1", "--results", str(results))


def make_sweep(results: Path) -> int:
    """Write a finished sweep; return the bytes of its phase records."""
    job = load_job(JOB)
    folder = SweepFolder.create(results, job, None, {"fingerprints": {}, "sharing": True})
    generator = random.Random(0)
    told = ['{"op_code": 0, "study_name": "raysweep", "directions": [1]}']
    ran: set[str] = set()
    lines: dict[str, list[str]] = {"plans": [], "phases": [], "trials": []}
    for trial, plan in enumerate(plans(job, generator), 1):
        proposal = Proposal(trial=trial, values=plan.values, proposer="random", attempt=1, seed=0)
        records = list(phase_records(plan, ran))
        ended = TrialRecord(
            trial=trial, status="COMPLETE", values=plan.values, seed=0, proposer="random", objective=records[-1].loss,
            objectives={"loss": records[-1].loss}, attempts=1, phases=[record.key for record in records], seconds=9.0,
        )  # fmt: skip
        lines["plans"].append(json.dumps(proposal.__dict__))
        lines["phases"] += [json.dumps(record.to_dict()) for record in records]
        lines["trials"].append(json.dumps(ended.to_dict()))
        told.append(json.dumps({"op_code": 4, "state": 1, "user_attrs": {"trial": trial}}))
    for name, content in lines.items():
        (folder.path / f"{name}.jsonl").write_text("\n".join(content) + "\n", encoding="utf-8")
    (folder.path / "study.journal").write_text("\n".join(told) + "\n", encoding="utf-8")
    store_best(folder)
    return (folder.path / "phases.jsonl").stat().st_size


def plans(job: Job, generator: random.Random) -> Iterator[TrialPlan]:
    assert job.space is not None
    raw = job.spec.resolved()
    for trial in range(1, TRIALS + 1):
        values = job.space.draw(raw, generator)
        yield make_plan(
            job.with_values(values), values, trial=trial, fingerprints=Fingerprints(model="made up", data="made up")
        )


def phase_records(plan: TrialPlan, ran: set[str]) -> Iterator[PhaseRecord]:
    """Yield records whose numbers follow from the phases' keys, so that equal keys have equal ones."""
    head_map = [[0] * HEADS for _ in range(LAYERS)]
    for phase in plan.phases:
        draw = random.Random(phase.key)
        heads = acted_on(phase, head_map, draw)
        for layer, head in heads:
            head_map[layer][head] = -1 if phase.kind == "prune" else 1
        reused = phase.key in ran
        ran.add(phase.key)
        yield PhaseRecord(
            trial=plan.trial, phase=phase.kind, cycle=phase.cycle, key=phase.key, reused=reused, loss=3 + draw.random(),
            perplexity=30.0, active_heads=sum(head >= 0 for row in head_map for head in row),
            head_map=[list(row) for row in head_map], params=10**8, flops_per_token=1e8, steps=phase.steps,
            tokens=phase.steps * 2048, seconds=2.0, **details(phase, heads, draw),
        )  # fmt: skip


def acted_on(phase: PhasePlan, head_map: list[list[int]], draw: random.Random) -> list[list[int]]:
    """Return a few heads that a prune removes or a grow brings back."""
    if phase.kind not in ("prune", "grow"):
        return []
    wanted = -1 if phase.kind == "grow" else 0
    known = [[layer, head] for layer, row in enumerate(head_map) for head, grown in enumerate(row) if grown == wanted]
    return sorted(draw.sample(known, min(len(known), round(phase.params.get("level", 0.1) * LAYERS * HEADS))))


def details(phase: PhasePlan, heads: list[list[int]], draw: random.Random) -> dict[str, Any]:
    """Return artificial curves, scores and samples, which take most of the room of a record."""

    def grid() -> list[list[float]]:
        return [[draw.random() for _ in range(HEADS)] for _ in range(LAYERS)]

    points = [*range(LOG_EVERY, phase.steps, LOG_EVERY), *([phase.steps] if phase.steps else [])]
    found: dict[str, Any] = {
        "curve": [
            {"step": float(step), "loss": draw.random(), "lr": draw.random(), "gradient_norm": draw.random()}
            for step in points
        ]
    }
    if phase.kind == "measure":
        found["statistics"] = {f"statistic_{number}": grid() for number in range(STATISTICS)}
    if phase.kind in ("prune", "grow"):
        found["decision"] = {"strategy": "taylor", "options": {}, "heads": heads, "scores": [grid()]}
    if phase.kind in ("baseline", "measure", "learn"):
        found["samples"] = [{"prompt": "p" * 60, "text": "t" * 120, "repetition": 0.1}] * 3
    return found


def store_best(folder: SweepFolder) -> None:
    """Write the entries that the best trial would be restored from."""
    best = min(folder.trials().values(), key=lambda record: (record.objective, record.trial))
    folder.store.mkdir()
    for at, key in enumerate(best.phases):
        with entries.appearing(folder.store / key, folder.store) as entry:
            outcome = {"history": best.phases[: at + 1]}
            (entry / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
