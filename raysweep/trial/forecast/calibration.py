"""How fast a job's own model trains here: a few real optimizer steps as one worker would take them, without Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from raysweep.job.plan import TrialPlan
from raysweep.trial.acts import HeadMeter
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.data.trial_data import trial_data, trial_task
from raysweep.trial.measures.evaluation import evaluate, shared_batches
from raysweep.trial.measures.measures import PROBE_BATCH
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.training.loop import Schedule, Training

STEPS = 6
"""The first ones only warm up; what counts is the median of the others."""
WARMUP = 2


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Seconds as one worker measured them; what the group's exchange of gradients takes is not in them."""

    step: float
    rest: float
    """All else that a phase does: an evaluation, and a look at the heads."""
    steps: int


def measure(plan: TrialPlan, *, workers: int, cpus: float, on_gpu: bool) -> Calibration:
    """Train a new model of a plan for a few steps, on one worker's share of each batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    try:
        return _measure(plan, workers, Runtime(device=torch.device("cuda" if on_gpu else "cpu")))
    finally:
        torch.set_num_threads(threads)


def _measure(plan: TrialPlan, workers: int, runtime: Runtime) -> Calibration:
    data, task = trial_data(plan), trial_task(plan)
    state = TrialState.first(plan, data.facts, runtime)
    share = plan.training["batch_size"] // workers
    times: list[float] = []
    training = Training(
        state=state,
        schedule=Schedule(steps=STEPS, lr=1e-5, warmup_fraction=0.0),
        examples=data.train,
        task=task,
        order=BatchOrder(num_windows=len(data.train), batch_size=share, seed=0),
        training=plan.training,
        runtime=runtime,
        on_point=lambda point: None,
        on_step=lambda step: times.append(_now(runtime)),
    )
    training.run()
    per_step = [after - before for before, after in zip(times, times[1:], strict=False)]
    started = _now(runtime)
    evaluation = shared_batches(data.evaluation, share, task, runtime)
    evaluate(state.model, evaluation, runtime, plan.training["precision"])
    probed = shared_batches(data.train[: plan.data["probe_windows"]], PROBE_BATCH, task, runtime)
    HeadMeter(batches=probed, runtime=runtime, causal=task.causal).statistics(state)
    return Calibration(step=median(per_step[WARMUP:]), rest=(_now(runtime) - started) / workers, steps=STEPS)


def _now(runtime: Runtime) -> float:
    """Return the time at which all work given out so far is done."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
