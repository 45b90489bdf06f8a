"""The stage tree: phases of many trials, merged where their keys are equal, and what that saves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.job.plan import PhasePlan, TrialPlan


@dataclass(kw_only=True)
class Stage:
    """One distinct phase, and what follows it in any trial."""

    key: str
    label: str
    steps: int
    settings: dict[str, Any]
    """What it was told to do; of a first phase, seed, model and data too."""
    trials: list[int] = field(default_factory=list)
    """Trials that need it, in order; the first runs it."""
    next: list[Stage] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What sharing spares the trials of a sweep."""

    trials: int
    reusing: int
    """Trials that begin with phases which an earlier one runs."""
    prefixes: int
    """Different beginnings that they take over, each as long as possible."""
    steps: int
    steps_shared: int
    """Training steps when equal phases run once."""

    def __str__(self) -> str:
        if not self.reusing:
            return "no trial begins like another"
        spared = f": {1 - self.steps_shared / self.steps:.0%} fewer steps" if self.steps else ""
        prefixes = "1 prefix" if self.prefixes == 1 else f"{self.prefixes} prefixes"
        reuse = "reuses" if self.reusing == 1 else "reuse"
        return f"{self.reusing} of {self.trials} trials {reuse} {prefixes}{spared}"


@dataclass(kw_only=True)
class StageTree:
    """All phases of all trials, control arms included; grows trial by trial."""

    roots: list[Stage] = field(default_factory=list)
    by_key: dict[str, Stage] = field(default_factory=dict)
    _deepest: dict[int, str | None] = field(default_factory=dict)
    """Of each trial, the last of its own phases that an earlier one has too."""
    _steps: int = 0

    @staticmethod
    def of(plans: Iterable[TrialPlan]) -> StageTree:
        tree = StageTree()
        for plan in plans:
            tree.add(plan)
        return tree

    def add(self, plan: TrialPlan) -> None:
        shared = [phase.key for phase in plan.phases if phase.key in self.by_key]
        self._deepest[plan.trial] = shared[-1] if shared else None
        self._steps += sum(phase.steps for phase in plan.every_phase())
        for phases in _chains(plan):
            before: Stage | None = None
            for phase in phases:
                before = self._stage(phase, plan, before)

    @property
    def saving(self) -> Saving:
        taken_over = [key for key in self._deepest.values() if key is not None]
        return Saving(
            trials=len(self._deepest),
            reusing=len(taken_over),
            prefixes=len(set(taken_over)),
            steps=self._steps,
            steps_shared=sum(stage.steps for stage in self.by_key.values()),
        )

    def _stage(self, phase: PhasePlan, plan: TrialPlan, before: Stage | None) -> Stage:
        stage = self.by_key.get(phase.key)
        if stage is None:
            about = phase.params if before else phase.params | _origin(plan)
            stage = Stage(key=phase.key, label=phase.label, steps=phase.steps, settings=about)
            self.by_key[phase.key] = stage
            (before.next if before else self.roots).append(stage)
        if plan.trial not in stage.trials[-1:]:
            stage.trials.append(plan.trial)
        return stage


def as_dicts(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return stages after one parent, and what follows them, as plain data, those of most trials first.

    Of its settings each holds those that set it apart from its siblings of the same label.
    """
    described = [
        {
            "phase": stage.label,
            "settings": apart,
            "steps": stage.steps,
            "trials": len(stage.trials),
            "key": stage.key,
            "next": as_dicts(stage.next),
        }
        for stage, apart in zip(stages, differences(stages), strict=True)
    ]
    return sorted(described, key=lambda stage: -stage["trials"])


def differences(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return what sets each of some stages apart from those of them that have its label."""
    varying = {
        stage.label: _varying([other.settings for other in stages if other.label == stage.label]) for stage in stages
    }
    return [{name: stage.settings[name] for name in varying[stage.label] if name in stage.settings} for stage in stages]


def _varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]


def _origin(plan: TrialPlan) -> dict[str, Any]:
    parts = {"model": plan.model, "data": plan.data, "training": plan.training}
    named = {f"{part}.{name}": value for part, body in parts.items() for name, value in body.items()}
    return {"seed": plan.seed, **named}


def _chains(plan: TrialPlan) -> Iterator[Sequence[PhasePlan]]:
    yield plan.phases
    for arm, phases in plan.controls.items():
        yield phases[-1:] if arm == "from_scratch_small" else phases
