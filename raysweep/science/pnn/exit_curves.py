"""Measure accuracy against FLOPs and time of one recurrent network whose tokens leave early.

Measured are fixed depths, every exit rule over its thresholds, and for each threshold an exit by chance with the same
mean number of steps. All see the same examples with the same tokens masked. Thresholds are chosen on one half of the
examples and reported on the other: measured where it was chosen, the best of many thresholds looks better than it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from raysweep.contracts import Batch, Exit
from raysweep.job import registry
from raysweep.networks.pnn.dynamic import infer
from raysweep.science.pnn.interventions import step_states
from raysweep.trial.measures.evaluation import Seeded
from raysweep.trial.measures.inference import measure_inference
from raysweep.trial.runtime import Runtime

THRESHOLDS: dict[str, tuple[str, Sequence[float]]] = {
    "delta_norm": ("threshold", (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
    "patience": ("patience", (1, 2)),
    "kl": ("divergence", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    "max_probability": ("probability", (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)),
    "learned": ("quantile", (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)),
}
"""Exit -> its option, and the values to try."""
FIXED, CONTROL = "none", "random"
"""Exits of a fixed depth, where no token leaves early, and by chance."""
TOLERANCE = 0.002
"""Accuracy that may be lost for a saving to count: 0.2 percentage points."""


@dataclass(frozen=True, kw_only=True)
class ExitPoint:
    """One setting of an exit, measured on both halves of the examples."""

    exit: str
    options: dict[str, float]
    steps: int
    """Number of steps after which every token leaves."""
    searched: dict[str, float]
    """loss, perplexity, accuracy, flops_per_token and mean_steps on the half that thresholds are chosen on."""
    reported: dict[str, float]
    """The same on the other half."""
    seconds_per_token: float
    """Wall time on the reported half, the median of several runs; for a fixed depth, without any exit code."""
    control: dict[str, float] | None = None
    """The numbers of leaving by chance on the reported half, after the mean number of steps of the searched one."""


@dataclass(frozen=True, kw_only=True)
class ExitSaving:
    """The saving of an exit against the trained depth, at an accuracy that is at most 0.2 points lower.

    The cheapest setting with that accuracy on the searched half is chosen; all numbers are of the reported half.
    """

    exit: str
    chosen: dict[str, float]
    """Options and steps of the chosen setting."""
    flops: float
    """Saved share of the FLOPs."""
    seconds: float
    """Saved share of the wall time; below 0 where it takes longer."""
    accuracy: float
    """Accuracy minus that of the trained depth."""
    over_chance: float | None
    """Accuracy minus that of leaving by chance after equally many steps; None for a fixed depth."""


@dataclass(frozen=True, kw_only=True)
class ExitCurves:
    """All settings of all exits, measured on one network."""

    trained_steps: int
    batch_size: int
    points: list[ExitPoint] = field(default_factory=list)

    @property
    def savings(self) -> list[ExitSaving]:
        """The saving of each exit; an exit whose accuracy is too low at every threshold is left out."""
        reference = next(p for p in self.points if p.exit == FIXED and p.steps == self.trained_steps)
        found = [self._saving(name, reference) for name in dict.fromkeys(point.exit for point in self.points)]
        return [saving for saving in found if saving is not None]

    def _saving(self, name: str, reference: ExitPoint) -> ExitSaving | None:
        # Settings are compared with each other on the searched half alone.
        least = reference.searched["accuracy"] - TOLERANCE
        able = [p for p in self.points if p.exit == name and p.searched["accuracy"] >= least]
        if not able:
            return None
        # By counted FLOPs, not by seconds, which vary from run to run.
        best = min(able, key=lambda point: point.searched["flops_per_token"])
        return ExitSaving(
            exit=name,
            chosen={**best.options, "steps": best.steps},
            flops=1 - best.reported["flops_per_token"] / reference.reported["flops_per_token"],
            seconds=1 - best.seconds_per_token / reference.seconds_per_token,
            accuracy=best.reported["accuracy"] - reference.reported["accuracy"],
            over_chance=best.reported["accuracy"] - best.control["accuracy"] if best.control else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, savings included."""
        # asdict leaves properties out.
        return {**asdict(self), "savings": [asdict(saving) for saving in self.savings]}


def exit_curves(
    network: Any,
    halves: Sequence[Sequence[Seeded]],
    *,
    thresholds: Mapping[str, tuple[str, Sequence[float]]] = THRESHOLDS,
    runs: int = 3,
    runtime: Runtime | None = None,
    precision: str = "fp32",
) -> ExitCurves:
    """Measure a trained PNN at every fixed depth up to twice its own, and with every exit rule.

    Args:
        network: a PNN with a shared module.
        halves: held-out batches with the seeds of their examples: those that thresholds are chosen on, and those that
            are reported.
        thresholds: exit -> its option and the values to try.
        runs: timings of each setting, of which the median counts.

    Raises:
        ModelError: the network has separate layers, which tokens cannot leave between.
    """
    runtime = runtime or Runtime(device=torch.device("cpu"))
    meter = _ExitMeter(network=network.eval(), halves=halves, runtime=runtime, precision=precision)
    trained = int(network.config.num_steps)
    # Up to twice the trained depth: a curve that still rises there shows what more steps would give.
    settings = [_ExitSetting(exit=FIXED, options={}, steps=steps) for steps in range(1, 2 * trained + 1)]
    for name, (option, values) in thresholds.items():
        # Only training with ponder weights gives a network the exit head that the learned rule reads.
        if name != "learned" or network.config.step_weights == "ponder":
            settings += [_ExitSetting(exit=name, options={option: value}, steps=trained) for value in values]
    found = [meter.measured(setting) for setting in settings]
    seconds = meter.seconds(settings, runs)
    # Measured in two rounds, as times must not depend on what else is computed between the settings.
    points = [replace(point, seconds_per_token=own) for point, own in zip(found, seconds, strict=True)]
    return ExitCurves(trained_steps=trained, batch_size=len(halves[1][0][1]), points=points)


@dataclass(frozen=True, kw_only=True)
class _ExitSetting:
    """An exit with its options, and the number of steps after which every token leaves."""

    exit: str
    options: dict[str, float]
    steps: int

    @property
    def rule(self) -> Exit:
        rule: Exit = registry.build("exits", self.exit, self.options)
        return rule


@dataclass(frozen=True, kw_only=True)
class _ExitMeter:
    """Measures settings of exits on two halves of examples."""

    network: Any
    halves: Sequence[Sequence[Seeded]]
    runtime: Runtime
    precision: str

    def measured(self, setting: _ExitSetting) -> ExitPoint:
        """Return all numbers of a setting but its time."""
        searched, reported = (self._numbers(half, setting) for half in self.halves)
        control = None
        # The control takes the mean number of steps of the searched half: that of the reported half is a result.
        if setting.exit != FIXED:
            chance = _ExitSetting(exit=CONTROL, options={"mean_steps": searched["mean_steps"]}, steps=setting.steps)
            control = self._numbers(self.halves[1], chance)
        return ExitPoint(**vars(setting), searched=searched, reported=reported, control=control, seconds_per_token=0.0)

    def seconds(self, settings: Sequence[_ExitSetting], runs: int) -> list[float]:
        """Return the median wall time of each setting in seconds a token."""
        # In rounds over all settings: whatever else the machine does for a while then slows all of them alike.
        places = sum(_places(batch) for batch, _ in self.halves[1])
        rounds = [[self._once(setting) / places for setting in settings] for _ in range(runs)]
        return [statistics.median(times) for times in zip(*rounds, strict=True)]

    def _numbers(self, half: Sequence[Seeded], setting: _ExitSetting) -> dict[str, float]:
        """Return the numbers of a setting on one half."""
        return measure_inference(
            self.network, half, setting.rule, steps=setting.steps, runtime=self.runtime, precision=self.precision
        ).numbers  # fmt: skip

    def _once(self, setting: _ExitSetting) -> float:
        """Return the wall time of a setting on the reported half, in seconds."""
        rule = setting.rule
        # A GPU computes behind the program's back: it must be idle when the clock starts and when it stops.
        self._wait()
        started = time.perf_counter()
        for batch, seeds in self.halves[1]:
            with self.runtime.autocast(self.precision):
                # A fixed depth is timed without `infer`, whose bookkeeping it does not need: savings are to be
                # compared with the network as anyone would run it.
                if setting.exit == FIXED:
                    self._as_it_is(batch, setting.steps)
                else:
                    infer(self.network, batch, rule, steps=setting.steps, seeds=seeds)
        self._wait()
        return time.perf_counter() - started

    @torch.no_grad()
    def _as_it_is(self, batch: Batch, steps: int) -> torch.Tensor:
        """Run a batch through a fixed number of steps and return its logits."""
        state = step_states(self.network, batch, steps)[-1]
        logits: torch.Tensor = self.network.predict(self.network.predicted_from(state, batch.labelled))
        return logits

    def _wait(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)


def _places(batch: Batch) -> int:
    """Return the number of tokens of a batch, or of its images."""
    return batch.inputs.numel() if batch.inputs.dim() == 2 else len(batch.inputs)
