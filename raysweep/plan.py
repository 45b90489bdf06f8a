"""A trial resolved to frozen phases, each with a key: the hash of everything that determines its outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from raysweep.spec import JobSpec

PHASES = ("baseline", "prune", "measure", "grow", "learn")
TRAINING_PHASES = ("baseline", "learn")


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase: what to do, in which cycle (0 for the baseline), and the key of its outcome."""

    kind: str
    cycle: int
    params: dict[str, Any]
    key: str

    @property
    def steps(self) -> int:
        """Optimizer steps that the phase trains for."""
        return int(self.params.get("steps", 0))

    @property
    def label(self) -> str:
        return self.kind if self.cycle <= 1 else f"{self.kind}@{self.cycle}"


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Everything a worker needs to run one trial; JSON-able, the same on every machine."""

    trial: int
    values: dict[str, Any]
    seed: int
    minimize: str
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    checkpoint_every_steps: int
    phases: tuple[PhasePlan, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> TrialPlan:
        fields = json.loads(text)
        fields["phases"] = tuple(PhasePlan(**phase) for phase in fields["phases"])
        return TrialPlan(**fields)


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Hashes of what the names in a job stand for, on the machine that plans."""

    model: str
    data: str


def make_plan(spec: JobSpec, values: Mapping[str, Any], *, trial: int, fingerprints: Fingerprints) -> TrialPlan:
    """Resolve one trial. `spec` already holds the trial's values; equal inputs give equal keys."""
    training = spec.training.model_dump(mode="json")
    key = content_key(
        {
            "raysweep": version("raysweep"),
            "torch": version("torch").partition("+")[0],
            "transformers": version("transformers"),
            "model": {**spec.model.model_dump(mode="json"), "fingerprint": fingerprints.model},
            "data": {**spec.data.model_dump(mode="json"), "fingerprint": fingerprints.data},
            "seed": spec.seed,
            "workers": spec.scale.workers,
            "cpus_per_worker": spec.scale.cpus_per_worker,  # threads, and so the order of sums
            "device": "cuda" if spec.scale.gpus_per_worker else "cpu",
            "precision": spec.training.precision,
            "batch_size": spec.training.batch_size,  # every phase is measured in batches of it
        }
    )
    phases = []
    for kind, cycle, params in _phase_params(spec, training):
        key = content_key({"parent": key, "kind": kind, "cycle": cycle, "params": params})
        phases.append(PhasePlan(kind=kind, cycle=cycle, params=params, key=key))
    return TrialPlan(
        trial=trial,
        values=dict(values),
        seed=spec.seed,
        minimize=spec.search.minimize if spec.search else "loss",
        model=spec.model.model_dump(mode="json"),
        data=spec.data.model_dump(mode="json"),
        training=training,
        checkpoint_every_steps=spec.scale.checkpoint_every_steps,
        phases=tuple(phases),
    )


def _phase_params(spec: JobSpec, training: dict[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    cycle = spec.cycle
    baseline = cycle.baseline.model_dump(mode="json") | training if cycle.baseline else {}
    phases: list[tuple[str, int, dict[str, Any]]] = [("baseline", 0, baseline)]
    for number in range(1, cycle.cycles + 1):
        if cycle.prune:
            phases.append(("prune", number, cycle.prune.model_dump(mode="json")))
            phases.append(("measure", number, cycle.measure.model_dump(mode="json")))
        if cycle.grow:
            phases.append(("grow", number, cycle.grow.model_dump(mode="json")))
        if cycle.learn:
            phases.append(("learn", number, cycle.learn.model_dump(mode="json") | training))
    return phases


def content_key(content: Any) -> str:
    """Return a short hash of a JSON-able value, independent of key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def derived_seed(key: str, *purpose: object) -> int:
    """Return a generator seed that depends on a phase key and on what the numbers are for."""
    text = "/".join([key, *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
