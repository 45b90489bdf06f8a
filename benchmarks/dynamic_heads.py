"""Compare per-token head gates with static Taylor pruning, on a gpt2-nano trained from scratch on the corpus."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import Figure, figure, write
from raysweep.job.jobfile import check_job
from raysweep.job.plan import TrialPlan, make_plan
from raysweep.job.spec import DataSpec
from raysweep.science.dynamic_heads import RouterCurve, RouterOptions, router_curve
from raysweep.trial.data.trial_data import trial_data
from raysweep.trial.forecast.preflight import preflight
from raysweep.trial.phases import run_trial
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.store.phase_store import PhaseStore

JOB: dict[str, Any] = {
    "name": "dynamic",
    "model": {"name": "gpt2-nano"},
    "data": {"name": "python-docs", "seq_len": 128},
    "training": {"batch_size": 8},
    "cycle": {"baseline": {"steps": 300, "lr": 5.0e-3}},
}
QUESTION = RouterOptions(penalties=(0.1, 0.3, 1.0), steps=60)


def main() -> None:
    torch.set_num_threads(1)
    runtime = Runtime(device=torch.device("cpu"))
    job = check_job(JOB, "dynamic")
    plan = make_plan(job.spec, {}, trial=1, fingerprints=preflight(job))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(plan, PhaseStore(Path(folder)), runtime)
    write("dynamic_heads", figures(found))


def measure(plan: TrialPlan, store: PhaseStore, runtime: Runtime) -> RouterCurve:
    """Train the model, then the routers on it."""
    (record,) = run_trial(plan, runtime, store)
    data, spec = trial_data(plan), DataSpec(**plan.data)
    state = TrialState.restored(plan, record.key, store, data.facts, runtime)
    return router_curve(
        state.model, state.head_map, data.train, data.evaluation, spec, QUESTION, runtime, name=plan.model["name"],
        sha256=data.content_sha256,
    )  # fmt: skip


def figures(found: RouterCurve) -> list[Figure]:
    whole, result = found.full.flops_per_token, []
    for point in found.points:
        flops = point.flops_per_token / whole
        beside = "no static plan is as cheap"
        if point.static is not None:
            share = point.static.flops_per_token / whole
            beside = f"Taylor pruning, {point.static.heads} heads at {share:.1%} of FLOPs: {point.static.loss:.4f}"
        result.append(
            figure(
                f"held-out loss with per-token gates, penalty {point.penalty:g}, at {flops:.1%} of FLOPs counted "
                f"(as it is: {found.full.loss:.4f})",
                [point.loss], asked="(measured)", unit="nats", baseline=beside,
            )
        )  # fmt: skip
    times = found.seconds_per_token
    ratio = times["gated"] / times["plain"]
    return [*result, figure(
        "forward time with per-token gates", [ratio], asked="(measured: closed heads are not skipped)", unit="x",
        baseline="the network without routers",
    )]  # fmt: skip


if __name__ == "__main__":
    main()
