"""The stage tree: the phases of many trials, merged where their keys are equal, and how much work that saves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.job.plan import PhasePlan, TrialPlan


@dataclass(kw_only=True)
class Stage:
    """One distinct phase, with the phases that follow it in any trial."""

    key: str
    label: str
    steps: int
    settings: dict[str, Any]
    """Its parameters; of a first phase also seed, model, data and training."""
    trials: list[int] = field(default_factory=list)
    """Trials that have it, in order; the first one runs it."""
    arms: list[tuple[int, str]] = field(default_factory=list)
    """Control arms that have it beside their trials, which have it not: numbers of the trials and names of the arms."""
    next: list[Stage] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The work that the trials of a sweep save by sharing phases."""

    trials: int
    reusing: int
    """Trials that begin with phases of an earlier trial."""
    prefixes: int
    """Number of different beginnings that they take over, each as long as possible."""
    steps: int
    """Training steps of all trials without sharing."""
    steps_shared: int
    """Training steps where equal phases run once."""

    def __str__(self) -> str:
        if not self.reusing:
            return "no trial begins like another"
        spared = f": {1 - self.steps_shared / self.steps:.0%} fewer steps" if self.steps else ""
        prefixes = "1 prefix" if self.prefixes == 1 else f"{self.prefixes} prefixes"
        reuse = "reuses" if self.reusing == 1 else "reuse"
        return f"{self.reusing} of {self.trials} trials {reuse} {prefixes}{spared}"


@dataclass(kw_only=True)
class StageTree:
    """All phases of all trials, control arms included; trials are added one by one."""

    roots: list[Stage] = field(default_factory=list)
    by_key: dict[str, Stage] = field(default_factory=dict)
    _deepest: dict[int, str | None] = field(default_factory=dict)
    """Key of the last phase of each trial that an earlier trial also has; None where it shares none."""
    _steps: int = 0

    @staticmethod
    def of(plans: Iterable[TrialPlan]) -> StageTree:
        tree = StageTree()
        for plan in plans:
            tree.add(plan)
        return tree

    def add(self, plan: TrialPlan) -> None:
        """Add the phases of a trial."""
        # Looked up before the trial's own phases are added. A key depends on all phases before it, so the phases that a
        # trial shares are always its first ones.
        shared = [phase.key for phase in plan.phases if phase.key in self.by_key]
        self._deepest[plan.trial] = shared[-1] if shared else None
        self._steps += sum(phase.steps for phase in plan.every_phase())
        for arm, phases in _chains(plan):
            before: Stage | None = None
            for phase in phases:
                before = self._stage(phase, plan, before)
                # The trial's own chain comes first, so the last entry tells whether the trial has the stage, too.
                if arm is None:
                    before.trials.append(plan.trial)
                elif plan.trial not in before.trials[-1:]:
                    before.arms.append((plan.trial, arm))

    @property
    def saving(self) -> Saving:
        """How much the trials so far save."""
        # Trials that share up to the same phase take over the same beginning, so different last keys count them.
        taken_over = [key for key in self._deepest.values() if key is not None]
        return Saving(
            trials=len(self._deepest),
            reusing=len(taken_over),
            prefixes=len(set(taken_over)),
            steps=self._steps,
            steps_shared=sum(stage.steps for stage in self.by_key.values()),
        )

    def _stage(self, phase: PhasePlan, plan: TrialPlan, before: Stage | None) -> Stage:
        """Return the stage of a phase, made and linked to the stage before it where the phase is new."""
        stage = self.by_key.get(phase.key)
        if stage is None:
            # Seed, model and data are the same for all phases of a trial, so trials that differ in them part here.
            about = phase.params if before else phase.params | _origin(plan)
            stage = Stage(key=phase.key, label=phase.label, steps=phase.steps, settings=about)
            self.by_key[phase.key] = stage
            (before.next if before else self.roots).append(stage)
        return stage


def as_dicts(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return the stages after one parent, with all that follow them, as plain data; those of most trials first.

    `settings` holds only what differs between siblings with the same label.
    """
    described = [
        {
            "phase": stage.label,
            "settings": apart,
            "steps": stage.steps,
            "trials": len(stage.trials),
            "arms": len(stage.arms),
            "key": stage.key,
            "next": as_dicts(stage.next),
        }
        for stage, apart in zip(stages, differences(stages), strict=True)
    ]
    return sorted(described, key=lambda stage: (-stage["trials"], -stage["arms"]))


def differences(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return for each stage the settings in which it differs from other stages with the same label."""
    varying = {
        stage.label: _varying([other.settings for other in stages if other.label == stage.label]) for stage in stages
    }
    return [{name: stage.settings[name] for name in varying[stage.label] if name in stage.settings} for stage in stages]


def _varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that do not have the same value everywhere."""
    # By repr, because values can be lists, which have no hash; 1 and True are told apart, too.
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]


def _origin(plan: TrialPlan) -> dict[str, Any]:
    """Return the settings of a trial that hold for all its phases, by their path in the job."""
    parts = {"model": plan.model, "data": plan.data, "training": plan.training}
    named = {f"{part}.{name}": value for part, body in parts.items() for name, value in body.items()}
    return {"seed": plan.seed, **named}


def _chains(plan: TrialPlan) -> Iterator[tuple[str | None, Sequence[PhasePlan]]]:
    """Yield the phases of a trial, then the name and the phases of each control arm, in order."""
    yield None, plan.phases
    for arm, phases in plan.controls.items():
        # Of the trainings of a small model, one for each cycle, only the last is run unless the trial halts.
        yield arm, phases[-1:] if arm == "from_scratch_small" else phases
