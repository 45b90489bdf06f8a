"""What a job will take: phases and steps with and without sharing, time, memory and disk. Starts nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from raysweep.core.networks import build_skeleton
from raysweep.jobfile import Job
from raysweep.plan import TRAINING_PHASES, Fingerprints, PhasePlan, TrialPlan, derived_seed, make_plan
from raysweep.plasticity.accounting import TRAINING_TO_FORWARD, active_parameters, flops_per_token, positions
from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.model import PlasticModel
from raysweep.records import PhaseRecord

TYPICAL_EFFICIENCY = 0.5
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
    seconds: float | None
    """None: this machine says nothing about the one that the job asks for."""
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
    everything = [phase for plan in plans for phase in plan.every_phase()]
    distinct = list({phase.key: phase for phase in everything}.values())
    run = distinct if sharing else everything
    model = build_skeleton(job.spec.model, seq_len=job.spec.data.seq_len)
    parameters = active_parameters(model, HeadMap.full(*model.shape))
    pace = _past_pace(list(past)) or _measured_pace(job, model)
    trained = sum(1 for phase in run if phase.kind in TRAINING_PHASES and phase.steps)
    return Estimate(
        trials=len(plans),
        phases=len(everything),
        phases_shared=len(distinct),
        steps=sum(phase.steps for phase in everything),
        steps_shared=sum(phase.steps for phase in distinct),
        parameters=parameters,
        seconds=_seconds(job, pace, run, len(plans)) if pace else None,
        seconds_from=pace.source if pace else "no GPU here to judge by",
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


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """What one optimizer step takes, and all else that a phase does, in seconds."""

    step: float
    rest: float
    source: str

    def seconds(self, phase: PhasePlan) -> float:
        return phase.steps * self.step + self.rest


def _seconds(job: Job, pace: _Pace, run: list[PhasePlan], trials: int) -> float:
    """Return the wall time on all lanes: while one trains a baseline that all share, the others wait."""
    lanes = min(job.spec.scale.lanes, trials)
    baselines = [phase for phase in run if phase.kind == "baseline"]
    alone = pace.seconds(baselines[0]) if len(baselines) == 1 else 0.0
    return START_SECONDS + alone + (sum(map(pace.seconds, run)) - alone) / lanes


def _past_pace(past: list[PhaseRecord]) -> _Pace | None:
    """Return the pace of phases that were run, None where none of them trained."""
    trained = [record for record in past if record.steps and not record.reused]
    other = [record.seconds for record in past if not record.steps and not record.reused]
    if not trained:
        return None
    rest = sum(other) / len(other) if other else 0.0
    training = sum(max(0.0, record.seconds - rest) for record in trained)
    source = f"{len(trained) + len(other)} phases of this model run before"
    return _Pace(step=training / sum(record.steps for record in trained), rest=rest, source=source)


def _measured_pace(job: Job, model: PlasticModel) -> _Pace | None:
    """Return the pace that a matrix product suggests, None where the job asks for a GPU and none is here."""
    scale, data = job.spec.scale, job.spec.data
    if scale.gpus_per_worker and not torch.cuda.is_available():
        return None
    worker = _matrix_product_speed("cuda") if scale.gpus_per_worker else _core_speed() * max(1, scale.cpus_per_worker)
    per_example = positions(model, data.seq_len)
    flops = flops_per_token(model, HeadMap.full(*model.shape), per_example)
    seconds_per_token = flops / (worker * TYPICAL_EFFICIENCY * scale.workers)
    tokens = job.spec.training.batch_size * per_example
    return _Pace(
        step=tokens * TRAINING_TO_FORWARD * seconds_per_token,
        rest=data.eval_tokens * seconds_per_token,
        source=f"a matrix product measured here, x {TYPICAL_EFFICIENCY}",
    )


def _core_speed() -> float:
    """Measure with one thread: all cores together would wait for whatever else runs here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _matrix_product_speed("cpu")
    finally:
        torch.set_num_threads(threads)


def _matrix_product_speed(device: str, size: int = 1024, repeats: int = 5) -> float:
    """Return floating-point operations per second."""
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        float((left @ right)[0, 0])
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def _training_bytes(job: Job, model: PlasticModel, parameters: int) -> int:
    """Weights, gradients and two moments; logits and their gradient; some twenty activations a layer."""
    config: Any = model.network.config
    spec = job.spec
    batch = spec.training.batch_size // (spec.scale.workers * spec.training.accumulation)
    tokens = batch * positions(model, spec.data.seq_len)
    layers, heads = model.shape
    width = heads * model.sites[0].head_dim
    return parameters * 16 + tokens * (getattr(config, "vocab_size", 0) * 3 + layers * width * 20) * 4
