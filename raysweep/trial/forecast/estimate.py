"""What a job will take: phases and steps with and without sharing, time, memory and disk. Starts nothing."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from raysweep.job import registry
from raysweep.job.jobfile import Job
from raysweep.job.plan import TRAINING_PHASES, Fingerprints, PhasePlan, TrialPlan, derived_seed, make_plan
from raysweep.job.stages import Saving, Stage, StageTree, as_dicts
from raysweep.networks.configuration import task_of
from raysweep.networks.loading import build_skeleton
from raysweep.networks.plasticity.accounting import (
    TRAINING_TO_FORWARD,
    active_parameters,
    flops_per_token,
    positions,
    uses,
)
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.records import points
from raysweep.records.schema import PhaseRecord
from raysweep.trial.forecast import calibration

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
    """Replicates and confirmations included."""
    phases: int
    phases_shared: int
    """Phases of all trials when equal ones run once."""
    distinct: dict[str, int]
    """These by their names."""
    saving: Saving
    parameters: int
    seconds: float | None
    """None: this machine says nothing about the one that the job asks for."""
    seconds_from: str
    worker_memory_bytes: int
    disk_bytes: int
    example: list[dict[str, Any]]
    """The phases of the first trial."""
    stages: list[Stage]
    """The first phases of the stage tree; see stages.py."""

    @property
    def steps(self) -> int:
        return self.saving.steps

    @property
    def steps_shared(self) -> int:
        return self.saving.steps_shared

    def to_dict(self) -> dict[str, Any]:
        names = [name for name in self.__dataclass_fields__ if name not in ("saving", "stages")]
        return {
            **{name: getattr(self, name) for name in names},
            "steps": self.steps,
            "steps_shared": self.steps_shared,
            "trials_reusing": self.saving.reusing,
            "prefixes_reused": self.saving.prefixes,
            "saving": str(self.saving),
            "stages": as_dicts(self.stages),
        }


def estimate(
    job: Job, fingerprints: Fingerprints, past: Iterable[PhaseRecord], sharing: bool = True, calibrate: bool = False
) -> Estimate:
    """Estimate a job.

    Args:
        past: phase records of earlier sweeps of the same model, for their pace.
        calibrate: where they say nothing, train a few steps here.
    """
    plans = list(_drawn_plans(job, fingerprints))
    tree = StageTree.of(plans)
    everything = [phase for plan in plans for phase in plan.every_phase()]
    run = list({phase.key: phase for phase in everything}.values()) if sharing else everything
    model = build_skeleton(job.spec.model, seq_len=job.spec.data.seq_len)
    parameters = active_parameters(model, HeadMap.full(*model.shape))
    pace = _past_pace(list(past)) or (_calibrated_pace(plans[0], job) if calibrate else _suggested_pace(job, model))
    trained = sum(1 for phase in run if phase.kind in TRAINING_PHASES and phase.steps)
    return Estimate(
        trials=len(plans),
        phases=len(everything),
        phases_shared=len(tree.by_key),
        distinct=dict(Counter(stage.label for stage in tree.by_key.values())),
        saving=tree.saving,
        parameters=parameters,
        seconds=_seconds(job, pace, run, len(plans)) if pace else None,
        seconds_from=pace.source if pace else "no GPU here to judge by",
        worker_memory_bytes=PROCESS_BYTES + _training_bytes(job, model, parameters),
        disk_bytes=trained * parameters * 12,  # weights and two moments
        example=[{"phase": phase.label, "steps": phase.steps, "key": phase.key} for phase in plans[0].phases],
        stages=tree.roots,
    )


def _drawn_plans(job: Job, fingerprints: Fingerprints) -> Iterator[TrialPlan]:
    """Plan what the search may propose, then what follows it: any points may turn out to be the best."""
    spec, search = job.spec, job.spec.search
    raw = spec.resolved()
    generator = random.Random(derived_seed(str(spec.seed), "estimate"))
    drawn = [job.space.draw(raw, generator) if job.space else {} for _ in range(search.trials if search else 1)]
    specs = [job.with_values(values) for values in drawn]
    chosen = [(number, spec.seed) for number in range(len(drawn))]
    if search is not None:
        others = range(spec.seed + 1, spec.seed + search.seeds)
        chosen += [(number, seed) for number in range(len(drawn))[: search.top] for seed in others]
        fresh = range(others.stop, others.stop + search.seeds) if points.is_confirmed(spec) else ()
        chosen += [(0, seed) for seed in fresh]
    for trial, (number, seed) in enumerate(chosen, 1):
        seeded = specs[number].model_copy(update={"seed": seed})
        yield make_plan(seeded, drawn[number], trial=trial, fingerprints=fingerprints)


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """What one optimizer step takes, and all else that a phase does, in seconds."""

    step: float
    rest: float
    source: str

    def seconds(self, phase: PhasePlan) -> float:
        return phase.steps * self.step + self.rest

    def evaluating(self, every: int | None) -> _Pace:
        """Return the pace of training that is interrupted by evaluations, which are most of `rest`."""
        return replace(self, step=self.step + (self.rest / every if every else 0.0))


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


def _calibrated_pace(plan: TrialPlan, job: Job) -> _Pace | None:
    """Return the pace of a few steps trained here, None where the job asks for a GPU and none is here."""
    scale = job.spec.scale
    if scale.gpus_per_worker and not torch.cuda.is_available():
        return None
    found = calibration.measure(
        plan, workers=scale.workers, cpus=scale.cpus_per_worker, on_gpu=scale.gpus_per_worker > 0
    )
    pace = _Pace(step=found.step, rest=found.rest, source=f"{found.steps} training steps measured here")
    return pace.evaluating(job.spec.training.evaluate_every)


def _suggested_pace(job: Job, model: PlasticModel) -> _Pace | None:
    """Return the pace that a matrix product suggests, None where the job asks for a GPU and none is here."""
    scale, data = job.spec.scale, job.spec.data
    if scale.gpus_per_worker and not torch.cuda.is_available():
        return None
    worker = _matrix_product_speed("cuda") if scale.gpus_per_worker else _core_speed() * max(1, scale.cpus_per_worker)
    per_example = positions(model, data.seq_len)
    whole, predicted = HeadMap.full(*model.shape), _predicted(job)
    learning = flops_per_token(model, whole, per_example, predicted=predicted, training=True)
    measuring = flops_per_token(model, whole, per_example, predicted=predicted)
    tokens = job.spec.training.batch_size * per_example
    speed = worker * TYPICAL_EFFICIENCY * scale.workers
    pace = _Pace(
        step=tokens * TRAINING_TO_FORWARD * learning / speed,
        rest=data.eval_tokens * measuring / speed,
        source=f"a matrix product measured here, x {TYPICAL_EFFICIENCY}",
    )
    return pace.evaluating(job.spec.training.evaluate_every)


def _predicted(job: Job) -> float:
    """Return the share of positions whose logits are computed."""
    return float(registry.load("tasks", task_of(job.spec.model)).predicted)


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
    """Weights, gradients and two moments; logits and their gradient; some twenty activations each time that a token
    passes through a layer."""
    config: Any = model.network.config
    spec = job.spec
    batch = spec.training.batch_size // (spec.scale.workers * spec.training.accumulation)
    tokens = batch * positions(model, spec.data.seq_len)
    width = model.sites[0].num_heads * model.sites[0].head_dim
    layers = sum(uses(model, site.output[0][0], training=True) for site in model.sites)
    vocabulary = 0 if model.decoder is None else config.vocab_size
    logits = uses(model, "decoder", training=True) * _predicted(job) * vocabulary
    return parameters * 16 + int(tokens * (logits * 3 + layers * width * 20)) * 4
