"""Estimate what a job takes: phases and steps with and without sharing, time, memory and disk. It starts no trial."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from raysweep.job import registry
from raysweep.job.jobfile import Job
from raysweep.job.plan import Fingerprints, PhasePlan, TrialPlan, derived_seed, make_plan
from raysweep.job.space import Values
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
from raysweep.trial.forecast import calibration, disk
from raysweep.trial.forecast.preflight import Checked

TYPICAL_EFFICIENCY = 0.5
"""Share of a large matrix product's speed that a training step reaches."""
PROCESS_BYTES = 450_000_000
"""Memory of a worker that has imported torch and transformers."""
OF_ARMS = "of control arms"
START_SECONDS = 40.0
"""Seconds to start Ray and the worker groups, imports included, once a sweep."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What all trials of a job take together.

    Where the values that a search will propose are not known yet, each trial has values drawn at random from the space.
    """

    trials: int
    """Number of trials, replicates and confirmations included."""
    foreseen: bool
    """Whether the values of the trials are those that the search will propose."""
    phases: int
    """Number of phases of all trials."""
    phases_shared: int
    """Number of phases to run if equal ones run once."""
    distinct: dict[str, int]
    """The same number by name of the phase; what control arms alone run stands under `of control arms`."""
    saving: Saving
    parameters: int
    """Parameters of the model with all heads."""
    seconds: float | None
    """Wall time; None if the job asks for a GPU and this machine has none to measure."""
    seconds_from: str
    """What the time is estimated from."""
    worker_memory_bytes: int
    disk_bytes: int
    """Of all checkpoints, when they are most."""
    example: list[dict[str, Any]]
    """The phases of the first trial."""
    stages: list[Stage]
    """The first phases of the stage tree; see job/stages.py."""
    data: dict[str, Any]
    """What is read of the corpus; see `describe` in trial/data/examples.py."""

    @property
    def steps(self) -> int:
        """Training steps of all trials."""
        return self.saving.steps

    @property
    def steps_shared(self) -> int:
        """Training steps if equal phases run once."""
        return self.saving.steps_shared

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
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
    job: Job, checked: Checked, past: Iterable[PhaseRecord], sharing: bool = True, *,
    points: Sequence[Values] | None = None, calibrate: bool = False,
) -> Estimate:  # fmt: skip
    """Estimate what a job takes.

    Args:
        checked: the job's model and data, as `check` found them.
        past: phase records of earlier sweeps of the same model, whose pace is taken.
        sharing: equal phases of different trials run once.
        points: those that the search will propose, if they are known.
        calibrate: without such records, train a few steps on this machine.
    """
    plans = list(plans_of(job, checked.fingerprints, drawn(job) if points is None else points))
    tree = StageTree.of(plans)
    # Control arms included. With sharing, phases of equal keys are one, whichever trial they belong to.
    everything = [phase for plan in plans for phase in plan.every_phase()]
    run = list({phase.key: phase for phase in everything}.values()) if sharing else everything
    model = build_skeleton(job.spec.model, seq_len=job.spec.data.seq_len)
    parameters = active_parameters(model, HeadMap.full(*model.shape))
    # The best source first: real phases of this model, then a few real steps, then the speed of a matrix product.
    pace = _past_pace(list(past)) or _pace_here(job, plans[0], model, calibrate)
    return Estimate(
        trials=len(plans),
        foreseen=points is not None,
        phases=len(everything),
        phases_shared=len(tree.by_key),
        distinct=dict(Counter(stage.label if stage.trials else OF_ARMS for stage in tree.by_key.values())),
        saving=tree.saving,
        parameters=parameters,
        seconds=_seconds(job, pace, run, len(plans)) if pace else None,
        seconds_from=pace.source if pace else "no GPU here to judge by",
        worker_memory_bytes=PROCESS_BYTES + _training_bytes(job, model, parameters),
        disk_bytes=disk.peak_bytes(plans, job.spec.scale, _sizes(model, parameters), sharing=sharing),
        example=[{"phase": phase.label, "steps": phase.steps, "key": phase.key} for phase in plans[0].phases],
        stages=tree.roots,
        data=checked.data,
    )


def _sizes(model: PlasticModel, parameters: int) -> disk.Model:
    layers, heads = model.shape
    one_less = active_parameters(model, HeadMap.full(layers, heads).without([(0, 0)]))
    return disk.Model(parameters=parameters, heads=layers * heads, head_parameters=parameters - one_less)


def drawn(job: Job) -> list[Values]:
    """Draw a point at random for each trial of a search."""
    spec, search = job.spec, job.spec.search
    raw = spec.resolved()
    # A seed of its own, so that the same job has the same estimate every time.
    generator = random.Random(derived_seed(str(spec.seed), "estimate"))
    return [job.space.draw(raw, generator) if job.space else {} for _ in range(search.trials if search else 1)]


def plans_of(job: Job, fingerprints: Fingerprints, drawn: Sequence[Values]) -> Iterator[TrialPlan]:
    """Yield plans of the trials that a search may run: its proposals, then replicates and confirmations of the best.

    Which points will be best is not known; the first ones stand for them.
    """
    spec, search = job.spec, job.spec.search
    specs = [job.with_values(values) for values in drawn]
    chosen = [(number, spec.seed) for number in range(len(drawn))]
    if search is not None:
        # Replicates run the best points on the other seeds, and a confirmation the winner on fresh seeds after those.
        others = range(spec.seed + 1, spec.seed + search.seeds)
        chosen += [(number, seed) for number in range(len(drawn))[: search.top] for seed in others]
        fresh = range(others.stop, others.stop + search.seeds) if points.is_confirmed(spec) else ()
        chosen += [(0, seed) for seed in fresh]
    for trial, (number, seed) in enumerate(chosen, 1):
        seeded = specs[number].model_copy(update={"seed": seed})
        yield make_plan(seeded, drawn[number], trial=trial, fingerprints=fingerprints)


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """How long one optimizer step takes, and the rest of a phase, in seconds."""

    step: float
    rest: float
    source: str
    """What was measured, for the reader of the estimate."""

    def seconds(self, phase: PhasePlan) -> float:
        """Return how long a phase takes."""
        return phase.steps * self.step + self.rest

    def evaluating(self, every: int | None) -> _Pace:
        """Return the pace of training with an evaluation after every so many steps; None: without any."""
        # An evaluation is most of `rest`, so `rest` stands for it.
        return replace(self, step=self.step + (self.rest / every if every else 0.0))


def _seconds(job: Job, pace: _Pace, run: list[PhasePlan], trials: int) -> float:
    """Return the wall time of all phases on all lanes."""
    # If all trials share one baseline, one lane trains it while the others wait: it is not divided among the lanes.
    lanes = min(job.spec.scale.lanes, trials)
    baselines = [phase for phase in run if phase.kind == "baseline"]
    alone = pace.seconds(baselines[0]) if len(baselines) == 1 else 0.0
    return START_SECONDS + alone + (sum(map(pace.seconds, run)) - alone) / lanes


def _past_pace(past: list[PhaseRecord]) -> _Pace | None:
    """Return the pace of the phases of earlier sweeps; None if none of them trained."""
    # Phases without steps show how long everything else in a phase takes; the remainder of the others is training.
    # Reused phases are left out: their seconds are those of a look-up.
    trained = [record for record in past if record.steps and not record.reused]
    other = [record.seconds for record in past if not record.steps and not record.reused]
    if not trained:
        return None
    rest = sum(other) / len(other) if other else 0.0
    training = sum(max(0.0, record.seconds - rest) for record in trained)
    source = f"{len(trained) + len(other)} phases of this model run before"
    return _Pace(step=training / sum(record.steps for record in trained), rest=rest, source=source)


def _pace_here(job: Job, plan: TrialPlan, model: PlasticModel, calibrate: bool) -> _Pace | None:
    """Return the pace measured on this machine; None if the job asks for a GPU and there is none."""
    if job.spec.scale.gpus_per_worker and not torch.cuda.is_available():
        return None
    pace = _calibrated_pace(job, plan) if calibrate else _suggested_pace(job, model)
    return pace.evaluating(job.spec.training.evaluate_every)


def _calibrated_pace(job: Job, plan: TrialPlan) -> _Pace:
    """Return the pace of a few steps trained on this machine."""
    scale = job.spec.scale
    found = calibration.measure(
        plan, workers=scale.workers, cpus=scale.cpus_per_worker, on_gpu=scale.gpus_per_worker > 0
    )
    return _Pace(step=found.step, rest=found.rest, source=f"{found.steps} training steps measured here")


def _suggested_pace(job: Job, model: PlasticModel) -> _Pace:
    """Return the pace that the FLOPs of the model and the speed of a matrix product on this machine suggest."""
    scale, data = job.spec.scale, job.spec.data
    worker = _matrix_product_speed("cuda") if scale.gpus_per_worker else _core_speed() * max(1, scale.cpus_per_worker)
    per_example = positions(model, data.seq_len)
    whole, predicted = HeadMap.full(*model.shape), _predicted(job)
    learning = flops_per_token(model, whole, per_example, predicted=predicted, training=True)
    measuring = flops_per_token(model, whole, per_example, predicted=predicted)
    tokens = job.spec.training.batch_size * per_example
    speed = worker * TYPICAL_EFFICIENCY * scale.workers
    return _Pace(
        step=tokens * TRAINING_TO_FORWARD * learning / speed,
        rest=data.eval_tokens * measuring / speed,
        source=f"a matrix product measured here, x {TYPICAL_EFFICIENCY}",
    )


def _predicted(job: Job) -> float:
    """Return the share of positions at which the task's logits are computed."""
    return float(registry.load("tasks", task_of(job.spec.model)).predicted)


def _core_speed() -> float:
    """Return the floating-point operations per second of one CPU core."""
    # With one thread: a product on all cores waits for the slowest, which may be busy with something else.
    with calibration.torch_threads(1):
        return _matrix_product_speed("cpu")


def _matrix_product_speed(device: str, size: int = 1024, repeats: int = 5) -> float:
    """Return the floating-point operations per second of a matrix product on a device."""
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        # Reading one element waits for the product, which a GPU computes after the call has returned.
        float((left @ right)[0, 0])
        times.append(time.perf_counter() - started)
    # The fastest of the runs: the others were slowed down by start-up costs or by other programs.
    return 2 * size**3 / min(times)


def _training_bytes(job: Job, model: PlasticModel, parameters: int) -> int:
    """Return the memory of training on one worker, in fp32: parameters, logits and activations.

    Absent heads count: a masked head takes as much memory as a present one.
    """
    config: Any = model.network.config
    spec = job.spec
    batch = spec.training.batch_size // (spec.scale.workers * spec.training.accumulation)
    tokens = batch * positions(model, spec.data.seq_len)
    width = model.sites[0].num_heads * model.sites[0].head_dim
    # A token of a recurrent network passes through a layer several times, and every pass keeps its activations.
    layers = sum(uses(model, site.output[0][0], training=True) for site in model.sites)
    vocabulary = 0 if model.decoder is None else config.vocab_size
    logits = uses(model, "decoder", training=True) * _predicted(job) * vocabulary
    # Weight, gradient and two moments of each parameter, 4 bytes each; three copies of the logits, with their gradient;
    # and about twenty activations of the width of the model for each token and layer.
    return parameters * 16 + int(tokens * (logits * 3 + layers * width * 20)) * 4
