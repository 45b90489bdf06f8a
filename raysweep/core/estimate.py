"""What a job will take: phases and steps with and without sharing, time, memory and disk. Starts nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from raysweep.core.networks import build_skeleton
from raysweep.environment import usable_cores
from raysweep.jobfile import Job
from raysweep.plan import TRAINING_PHASES, Fingerprints, PhasePlan, TrialPlan, derived_seed, make_plan
from raysweep.plasticity.accounting import active_parameters, flops_per_token
from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.model import PlasticModel
from raysweep.records import PhaseRecord

TRAINING_TO_FORWARD = 3
TYPICAL_EFFICIENCY = 0.4
"""Share of a large matrix product's speed that a training step reaches."""
PROCESS_BYTES = 450_000_000
"""A worker that has imported torch and transformers."""
START_SECONDS = 40.0
"""Ray, worker group and imports, once a sweep."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Sums over all trials; values of a searched job are drawn at random, since its sampler has not spoken yet."""

    trials: int
    phases: int
    phases_shared: int
    """Phases of all trials when equal ones run once."""
    steps: int
    steps_shared: int
    parameters: int
    seconds: float
    seconds_from: str
    worker_memory_bytes: int
    disk_bytes: int
    example: list[dict[str, Any]]
    """The phases of the first trial."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(job: Job, fingerprints: Fingerprints, past: Iterable[PhaseRecord], sharing: bool = True) -> Estimate:
    """Estimate a job.

    Args:
        past: phase records of earlier sweeps of the same model, for their pace.
    """
    plans = list(_drawn_plans(job, fingerprints))
    everything = [phase for plan in plans for phase in plan.phases]
    distinct = list({phase.key: phase for phase in everything}.values())
    run = distinct if sharing else everything
    model = build_skeleton(job.spec.model, seq_len=job.spec.data.seq_len)
    parameters = active_parameters(model, HeadMap.full(*model.shape))
    seconds, source = _seconds(job, model, run, list(past))
    trained = sum(1 for phase in run if phase.kind in TRAINING_PHASES and phase.steps)
    return Estimate(
        trials=len(plans),
        phases=len(everything),
        phases_shared=len(distinct),
        steps=sum(phase.steps for phase in everything),
        steps_shared=sum(phase.steps for phase in distinct),
        parameters=parameters,
        seconds=seconds,
        seconds_from=source,
        worker_memory_bytes=PROCESS_BYTES + _training_bytes(job, model, parameters),
        disk_bytes=trained * parameters * 12,  # weights and two moments
        example=[{"phase": phase.label, "steps": phase.steps, "key": phase.key} for phase in plans[0].phases],
    )


def _drawn_plans(job: Job, fingerprints: Fingerprints) -> Iterable[TrialPlan]:
    trials = job.spec.search.trials if job.spec.search else 1
    raw = job.spec.resolved()
    generator = random.Random(derived_seed(str(job.spec.seed), "estimate"))
    for trial in range(1, trials + 1):
        values = job.space.draw(raw, generator) if job.space else {}
        yield make_plan(job.with_values(values), values, trial=trial, fingerprints=fingerprints)


def _seconds(job: Job, model: PlasticModel, run: list[PhasePlan], past: list[PhaseRecord]) -> tuple[float, str]:
    """Return the wall time on all lanes, and what it was judged by."""
    lanes = job.spec.scale.lanes
    paced = [record for record in past if record.steps and not record.reused]
    other = [record.seconds for record in past if not record.steps and not record.reused]
    if paced:
        step = sum(record.seconds for record in paced) / sum(record.steps for record in paced)
        rest = sum(other) / len(other) if other else 0.0
        seconds = sum(phase.steps * step if phase.steps else rest for phase in run)
        return START_SECONDS + seconds / lanes, f"{len(past)} phases of this model run before"
    flops = flops_per_token(model, HeadMap.full(*model.shape), job.spec.data.seq_len)
    tokens = job.spec.training.batch_size * job.spec.data.seq_len
    training = sum(phase.steps for phase in run) * tokens * TRAINING_TO_FORWARD
    measuring = len(run) * job.spec.data.eval_tokens
    speed = _matrix_product_speed() * TYPICAL_EFFICIENCY * job.spec.scale.workers
    if job.spec.scale.gpus_per_worker and not torch.cuda.is_available():
        return float("nan"), "no GPU here to judge by"
    return START_SECONDS + (training + measuring) * flops / speed / lanes, "a matrix product measured here, x 0.4"


def _matrix_product_speed(size: int = 1024, repeats: int = 5) -> float:
    """Return floating-point operations per second of one worker: a core's share, or a GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        float((left @ right)[0, 0])
        times.append(time.perf_counter() - started)
    cores = usable_cores() if device == "cpu" else 1
    return 2 * size**3 / min(times) / cores


def _training_bytes(job: Job, model: PlasticModel, parameters: int) -> int:
    """Weights, gradients and two moments; logits and their gradient; some twenty activations a layer."""
    config: Any = model.network.config
    spec = job.spec
    batch = spec.training.batch_size // (spec.scale.workers * spec.training.accumulation)
    tokens = batch * spec.data.seq_len
    layers, heads = model.shape
    width = heads * model.sites[0].head_dim
    return parameters * 16 + tokens * (config.vocab_size * 3 + layers * width * 20) * 4
