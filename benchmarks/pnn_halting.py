"""Measure what tokens that leave early save, by every exit rule, on a PNN trained from scratch.

python -m benchmarks.pnn_halting [folder]     also draws the curves there
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import Figure, figure, write
from raysweep.job.jobfile import check_job
from raysweep.job.plan import make_plan
from raysweep.reports.plots.exit_curves import draw_exit_curves
from raysweep.science.pnn.exit_curves import ExitCurves, ExitSaving, exit_curves
from raysweep.trial.data.trial_data import trial_data, trial_task
from raysweep.trial.forecast.preflight import preflight
from raysweep.trial.measures.evaluation import seeded_batches
from raysweep.trial.measures.inference import halves_of
from raysweep.trial.phases import run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import PhaseStore

BATCH, STEPS = 256, 1200
JOB: dict[str, Any] = {
    "name": "halting",
    "data": {"name": "python-docs", "seq_len": 16, "eval_tokens": 65_536, "masking": "mask"},
    "training": {"batch_size": 64},
    "cycle": {"baseline": {"steps": STEPS, "lr": 3.0e-3}},
}
MODELS: dict[str, dict[str, Any]] = {
    "trained at four steps": {"name": "pnn-pico", "num_steps": 4},
    "trained with an exit head": {"name": "pnn-pico", "num_steps": 4, "step_weights": "ponder"},
}


def main() -> None:
    torch.set_num_threads(1)
    found = {how: measure(model) for how, model in MODELS.items()}
    for number, curves in enumerate(found.values()):
        for folder in map(Path, sys.argv[1:]):
            content = curves.to_dict()
            (folder / f"pnn_halting_{number}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            draw_exit_curves(content, folder / f"pnn_halting_{number}.png")
    write("pnn_halting", [one for how, curves in found.items() for one in figures(how, curves)])


def measure(model: dict[str, Any]) -> ExitCurves:
    """Train a network and measure its exit curves."""
    runtime = Runtime(device=torch.device("cpu"))
    job = check_job(JOB | {"model": model}, "halting")
    plan = make_plan(job.spec, {}, trial=1, fingerprints=preflight(job))
    with tempfile.TemporaryDirectory() as folder:
        store = PhaseStore(Path(folder))
        (record,) = run_trial(plan, runtime, store)
        state = TrialState.restored(plan, record.key, store, trial_data(plan).facts, runtime)
    held_out, task = trial_data(plan).evaluation, trial_task(plan)
    halves = [seeded_batches(held_out, half, BATCH, task, runtime) for half in halves_of(len(held_out))]
    return exit_curves(state.model.network, halves, runtime=runtime)


def figures(how: str, curves: ExitCurves) -> list[Figure]:
    return [one for saving in curves.savings for one in _figures(f"{_name(saving)}, {how}", saving, curves)]


def _name(saving: ExitSaving) -> str:
    if saving.exit == "none":
        return f"fixed depth {saving.chosen['steps']:g}"
    option, value = next(iter(saving.chosen.items()))
    return f"{saving.exit} ({option} {value:g})"


def _figures(name: str, saving: ExitSaving, curves: ExitCurves) -> list[Figure]:
    beside = f"all {curves.trained_steps} steps, batch {curves.batch_size}; accuracy {100 * saving.accuracy:+.2f} pp"
    if saving.over_chance is not None:
        beside += f", {100 * saving.over_chance:+.2f} pp over leaving by chance after as many steps"
    return [
        figure(f"FLOPs saved at equal accuracy: {name}", [saving.flops], asked="(measured)", unit="", baseline=beside),
        figure(f"wall time saved at equal accuracy: {name}", [saving.seconds], asked="> 0", unit="", baseline=beside),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
