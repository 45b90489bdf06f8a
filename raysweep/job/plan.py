"""A trial resolved to frozen phases, each with a key: the hash of everything that determines its outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from raysweep.job import code
from raysweep.job.cycle import CycleSpec, GrowSpec, PruneSpec
from raysweep.job.search import Control
from raysweep.job.spec import JobSpec

PHASES = ("baseline", "prune", "measure", "grow", "learn", "infer")
TRAINING_PHASES = ("baseline", "learn")
LOG_EVERY = 10
"""Training steps between two points of a phase's curve; its last step is always one."""


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
        return int(self.params.get("steps", 0)) if self.kind in TRAINING_PHASES else 0

    @property
    def label(self) -> str:
        return self.kind if self.cycle <= 1 else f"{self.kind}@{self.cycle}"


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Everything a worker needs to run one trial; JSON-able, the same on every machine."""

    trial: int
    values: dict[str, Any]
    seed: int
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    checkpoint_every_steps: int
    phases: tuple[PhasePlan, ...]
    halting: dict[str, Any]
    """Rules after which the trial stops early, and the cycles after which it ends anyway; see halting.py."""
    controls: dict[str, tuple[PhasePlan, ...]]
    """The phases of each control arm, from the beginning; those that are the trial's own have their keys."""
    judged: bool = True
    """Whether it reports to the stopping rule; what is run for statistics or on demand runs to its end."""

    def every_phase(self) -> list[PhasePlan]:
        """Return what the trial runs if it does not halt, its control arms included, each phase once."""
        arms = [phases[-1:] if arm == "from_scratch_small" else phases for arm, phases in self.controls.items()]
        return list({phase.key: phase for phases in (self.phases, *arms) for phase in phases}.values())

    def to_json(self) -> str:
        # vars and not asdict, which copies every list value by value.
        return json.dumps(self, default=vars, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> TrialPlan:
        fields = json.loads(text)
        fields["phases"] = tuple(PhasePlan(**phase) for phase in fields["phases"])
        fields["controls"] = {
            arm: tuple(PhasePlan(**phase) for phase in phases) for arm, phases in fields["controls"].items()
        }
        return TrialPlan(**fields)


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Hashes of what the names in a job stand for, on the machine that plans."""

    model: str
    data: str


def make_plan(
    spec: JobSpec, values: Mapping[str, Any], *, trial: int, fingerprints: Fingerprints, judged: bool = True
) -> TrialPlan:
    """Resolve one trial. `spec` already holds the trial's values; equal inputs give equal keys."""
    training = spec.training.model_dump(mode="json")
    root = content_key(
        {
            **versions(),
            "code": code.core(),
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
    phases = _chain(root, spec.cycle, training)
    controls = spec.search.controls if spec.search else ()
    return TrialPlan(
        trial=trial,
        values=dict(values),
        seed=spec.seed,
        model=spec.model.model_dump(mode="json"),
        data=spec.data.model_dump(mode="json"),
        training=training,
        checkpoint_every_steps=spec.scale.checkpoint_every_steps,
        phases=phases,
        halting=spec.cycle.model_dump(mode="json", include={"regression", "plateau", "cycles"}, exclude_none=True),
        controls={arm: _control(arm, root, spec.cycle, phases, training) for arm in controls},
        judged=judged,
    )


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that decide on outcomes besides raysweep's own code.

    They are looked up once a process: it takes milliseconds, and a plan is made for each of thousands of trials.
    """
    return {
        "torch": version("torch").partition("+")[0],  # builds of one version for several devices share their keys
        "transformers": version("transformers"),
        "numpy": version("numpy"),  # its generators draw what strategies choose at random
    }


def _chain(root: str, cycle: CycleSpec, training: dict[str, Any]) -> tuple[PhasePlan, ...]:
    """Link phases by their keys, each to the one before."""
    phases: list[PhasePlan] = []
    for kind, number, params in _phase_params(cycle, training):
        phases.append(_phase(phases[-1].key if phases else root, kind, number, params))
    if cycle.continuous is not None:
        baseline, learn = phases
        events = _events(baseline.key, cycle)
        phases = [baseline, _phase(baseline.key, "learn", learn.cycle, learn.params | {"events": events})]
    if cycle.infer is not None:
        phases.append(_phase(phases[-1].key, "infer", cycle.cycles, cycle.infer.model_dump(mode="json")))
    return tuple(phases)


def _phase(parent: str, kind: str, cycle: int, params: dict[str, Any]) -> PhasePlan:
    ran = code.of_phase(kind, params)
    key = content_key({"parent": parent, "kind": kind, "cycle": cycle, "params": params, "code": ran})
    return PhasePlan(kind=kind, cycle=cycle, params=params, key=key)


def _phase_params(cycle: CycleSpec, training: dict[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    baseline = cycle.baseline.model_dump(mode="json") | training if cycle.baseline else {}
    phases: list[tuple[str, int, dict[str, Any]]] = [("baseline", 0, baseline)]
    for number in range(1, cycle.cycles + 1):
        if cycle.continuous is None:
            phases += _structural_params(cycle, number)
        if cycle.learn:
            phases.append(("learn", number, cycle.learn.model_dump(mode="json") | training))
    return phases


def _structural_params(cycle: CycleSpec, number: int) -> list[tuple[str, int, dict[str, Any]]]:
    phases: list[tuple[str, int, dict[str, Any]]] = []
    if cycle.prune:
        level = round(cycle.prune.level + (number - 1) * cycle.level_escalation, 12)
        measured = cycle.measure.model_dump(mode="json")
        phases += [
            ("prune", number, cycle.prune.model_dump(mode="json") | {"level": level}),
            ("measure", number, measured),
        ]
    if cycle.grow:
        phases.append(("grow", number, cycle.grow.model_dump(mode="json")))
    return phases


def _events(parent: str, cycle: CycleSpec) -> list[dict[str, Any]]:
    """Plan the events of a continuous learn phase: each a step, and phases with the keys of the discrete cycle's."""
    assert cycle.continuous is not None and cycle.learn is not None
    spec = cycle.continuous
    steps = range(spec.first, cycle.learn.steps, spec.every)[: spec.events]
    counts = {"prune": spec.remove, "grow": spec.grow}
    events = []
    for number, step in enumerate(steps, 1):
        phases = []
        for kind, _, params in _structural_params(cycle, number):
            count = counts.get(kind)
            phase = _phase(parent, kind, number, params if count is None else params | {"count": count})
            phases.append(asdict(phase))
            parent = phase.key
        events.append({"step": step, "phases": phases})
    return events


def _control(
    arm: Control, root: str, cycle: CycleSpec, own: tuple[PhasePlan, ...], training: dict[str, Any]
) -> tuple[PhasePlan, ...]:
    """Return the phases of a control arm: the trial's cycle with one thing changed."""
    if arm == "from_scratch_small":
        return _small_models(cycle, own, training)
    changes: dict[str, Any] = {}
    if arm == "dense":
        changes = {"prune": None, "grow": None, "continuous": None}
    elif arm == "no_regrow":
        without_growth = cycle.continuous and cycle.continuous.model_copy(update={"grow": None})
        changes = {"grow": None, "continuous": without_growth}
    elif arm == "rewind" and cycle.grow:
        changes = {"grow": cycle.grow.model_copy(update={"init": "rewind"})}
    elif arm == "random_random":
        changes = {"prune": _at_random(cycle.prune), "grow": _at_random(cycle.grow)}
    return _chain(root, cycle.model_copy(update=changes), training)


def _at_random(section: PruneSpec | GrowSpec | None) -> PruneSpec | GrowSpec | None:
    """Name the random strategy; the options of the one that it replaces do not apply to it."""
    if section is None:
        return None
    fields = {name: getattr(section, name) for name in type(section).model_fields}
    return type(section)(**fields | {"strategy": "random"})


def _small_models(cycle: CycleSpec, own: tuple[PhasePlan, ...], training: dict[str, Any]) -> tuple[PhasePlan, ...]:
    """Return, for each cycle that the trial may end with, one training from new weights for as many steps.

    Its head counts are those after the cycle's last change of structure, so its key follows from that phase's.
    """
    steps = cycle.baseline.steps if cycle.baseline else 0
    lr = cycle.baseline.lr if cycle.baseline else cycle.learn.lr if cycle.learn else 0.0
    phases = []
    for number in range(1, cycle.cycles + 1):
        steps += cycle.learn.steps if cycle.learn else 0
        structure = [phase for phase in own if phase.cycle == number and phase.kind not in ("measure", "infer")]
        if cycle.continuous is None:
            structure = [phase for phase in structure if phase.kind != "learn"]
        if structure and steps:
            params = {"steps": steps, "lr": lr, "shaped_by": structure[-1].key} | training
            phases.append(_phase(structure[-1].key, "baseline", number, params))
    return tuple(phases)


def content_key(content: Any) -> str:
    """Return a short hash of a JSON-able value, independent of key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def derived_seed(key: str, *purpose: object) -> int:
    """Return a generator seed that depends on a phase key and on what the numbers are for."""
    text = "/".join([key, *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
