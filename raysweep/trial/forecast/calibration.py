"""Measure how fast a job's own model trains on this machine: a few real optimizer steps of one worker, without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from raysweep.job.plan import TrialPlan
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.measures.evaluation import evaluate, shared_batches
from raysweep.trial.measures.measures import Measures
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.training.loop import Schedule, Training

STEPS = 6
"""Training steps to take."""
WARMUP = 2
"""First steps, which are slower and are not counted; the median of the others is."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Seconds as one worker measured them, without the time that ranks take to exchange gradients."""

    step: float
    """Seconds of one optimizer step on one worker's share of a batch."""
    rest: float
    """Seconds of the rest of a phase: an evaluation, and one measurement of the heads."""
    steps: int
    """Steps taken to find out."""


def measure(plan: TrialPlan, *, workers: int, cpus: float, on_gpu: bool) -> Calibration:
    """Train a new model of a plan for a few steps, on one worker's share of each batch.

    Args:
        workers: ranks that share a batch.
        cpus: CPU cores of a worker, and so its threads.
    """
    # As many threads as the cores that a worker will have, not all cores of this machine.
    with torch_threads(max(1, int(cpus))):
        return _measure(plan, workers, Runtime(device=torch.device("cuda" if on_gpu else "cpu")))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(plan: TrialPlan, workers: int, runtime: Runtime) -> Calibration:
    measures = Measures.of(plan, runtime)
    data, task = measures.data, measures.task
    state = TrialState.first(plan, data.facts, runtime)
    # One worker's share of a batch: the others work at the same time, and take as long.
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
        on_step=lambda step: times.append(_now(runtime)),
    )
    training.run()
    # `on_step` is called before the first step and after the last, so n steps give n + 1 times.
    per_step = [after - before for before, after in zip(times, times[1:], strict=False)]
    started = _now(runtime)
    evaluation = shared_batches(data.evaluation, share, task, runtime)
    evaluate(state.model, evaluation, runtime, plan.training["precision"])
    measures.head_meter().statistics(state)
    # This one process evaluated and probed all examples, which a group of workers shares.
    return Calibration(step=median(per_step[WARMUP:]), rest=(_now(runtime) - started) / workers, steps=STEPS)


def _now(runtime: Runtime) -> float:
    """Return the time at which all work started so far is done."""
    # A GPU computes after the call has returned: without waiting, only the launching of kernels would be timed.
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
