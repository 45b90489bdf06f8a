"""Accuracy against FLOPs and time of one recurrent network, by how its tokens leave.

Fixed depths, every exit rule over its thresholds, and beside each of those points an exit by chance with the same mean
number of steps. All see the same examples with the same tokens hidden. Thresholds are chosen on one half of the
examples; what is claimed of them is measured on the other.
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
"""Exit -> its option, and the values that are tried."""
FIXED, CONTROL = "none", "random"
TOLERANCE = 0.002
"""Accuracy that may be lost for a saving to count: 0.2 percentage points."""


@dataclass(frozen=True, kw_only=True)
class ExitPoint:
    """One way of leaving, measured on both halves of the examples."""

    exit: str
    options: dict[str, float]
    steps: int
    """After so many every token leaves."""
    searched: dict[str, float]
    """loss, perplexity, accuracy, flops_per_token and mean_steps on the half that choices are made on."""
    reported: dict[str, float]
    """The same on the other half."""
    seconds_per_token: float
    """Wall time on the reported half, the median of several runs; of a fixed depth, of the network as it is."""
    control: dict[str, float] | None = None
    """What leaving by chance, with the mean steps of the searched half, gives on the reported one."""


@dataclass(frozen=True, kw_only=True)
class ExitSaving:
    """What a way of leaving saves against the trained depth, at an accuracy that is at most 0.2 points lower.

    Chosen on the searched half, the cheapest one; all numbers are of the reported half.
    """

    exit: str
    chosen: dict[str, float]
    """Its options and steps."""
    flops: float
    """Share of the FLOPs that is saved."""
    seconds: float
    """Share of the wall time that is saved; below 0: it takes longer."""
    accuracy: float
    """Difference to the trained depth's."""
    over_chance: float | None
    """Accuracy above that of leaving by chance after equally many steps."""


@dataclass(frozen=True, kw_only=True)
class ExitCurves:
    """Everything that was measured of one network."""

    trained_steps: int
    batch_size: int
    points: list[ExitPoint] = field(default_factory=list)

    @property
    def savings(self) -> list[ExitSaving]:
        """What each exit saves; one that reaches the accuracy at no threshold is left out."""
        reference = next(p for p in self.points if p.exit == FIXED and p.steps == self.trained_steps)
        found = [self._saving(name, reference) for name in dict.fromkeys(point.exit for point in self.points)]
        return [saving for saving in found if saving is not None]

    def _saving(self, name: str, reference: ExitPoint) -> ExitSaving | None:
        least = reference.searched["accuracy"] - TOLERANCE
        able = [p for p in self.points if p.exit == name and p.searched["accuracy"] >= least]
        if not able:
            return None
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
        """Return everything as plain data, the savings included."""
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
    """Measure a trained PNN at every fixed depth up to twice its own, and with tokens leaving by every rule.

    Args:
        network: as `core.networks.build_network` or an export gives it; `learned` is tried where it has an exit head.
        halves: held-out batches that choices are made on, and those that are reported; see `seeded_batches`.
        thresholds: exit -> its option and the values to try.
        runs: timings of each point, of which the median counts.

    Raises:
        ModelError: a network of separate layers.
    """
    runtime = runtime or Runtime(device=torch.device("cpu"))
    lab = _Laboratory(network=network.eval(), halves=halves, runtime=runtime, precision=precision)
    trained = int(network.config.num_steps)
    ways = [_Way(exit=FIXED, options={}, steps=steps) for steps in range(1, 2 * trained + 1)]
    for name, (option, values) in thresholds.items():
        if name != "learned" or network.config.step_weights == "ponder":
            ways += [_Way(exit=name, options={option: value}, steps=trained) for value in values]
    found = [lab.measured(way) for way in ways]
    seconds = lab.seconds(ways, runs)
    points = [replace(point, seconds_per_token=own) for point, own in zip(found, seconds, strict=True)]
    return ExitCurves(trained_steps=trained, batch_size=len(halves[1][0][1]), points=points)


@dataclass(frozen=True, kw_only=True)
class _Way:
    """A way of leaving."""

    exit: str
    options: dict[str, float]
    steps: int

    @property
    def rule(self) -> Exit:
        rule: Exit = registry.build("exits", self.exit, self.options)
        return rule


@dataclass(frozen=True, kw_only=True)
class _Laboratory:
    """A network on two halves of examples."""

    network: Any
    halves: Sequence[Sequence[Seeded]]
    runtime: Runtime
    precision: str

    def measured(self, way: _Way) -> ExitPoint:
        """Measure all but the time."""
        searched, reported = (self._numbers(half, way) for half in self.halves)
        control = None
        if way.exit != FIXED:
            chance = _Way(exit=CONTROL, options={"mean_steps": searched["mean_steps"]}, steps=way.steps)
            control = self._numbers(self.halves[1], chance)
        return ExitPoint(**vars(way), searched=searched, reported=reported, control=control, seconds_per_token=0.0)

    def seconds(self, ways: Sequence[_Way], runs: int) -> list[float]:
        """Return wall times per token, in rounds over all ways: what else the machine does meets them all alike."""
        places = sum(_places(batch) for batch, _ in self.halves[1])
        rounds = [[self._once(way) / places for way in ways] for _ in range(runs)]
        return [statistics.median(times) for times in zip(*rounds, strict=True)]

    def _numbers(self, half: Sequence[Seeded], way: _Way) -> dict[str, float]:
        return measure_inference(
            self.network, half, way.rule, steps=way.steps, runtime=self.runtime, precision=self.precision
        ).numbers  # fmt: skip

    def _once(self, way: _Way) -> float:
        rule = way.rule
        self._wait()
        started = time.perf_counter()
        for batch, seeds in self.halves[1]:
            with self.runtime.autocast(self.precision):
                if way.exit == FIXED:
                    self._as_it_is(batch, way.steps)
                else:
                    infer(self.network, batch, rule, steps=way.steps, seeds=seeds)
        self._wait()
        return time.perf_counter() - started

    @torch.no_grad()
    def _as_it_is(self, batch: Batch, steps: int) -> torch.Tensor:
        state = self.network.pnn.states(batch.inputs, batch.attention_mask, batch.token_types, steps)[-1]
        logits: torch.Tensor = self.network.predict(self.network.predicted_from(state, batch.labelled))
        return logits

    def _wait(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)


def _places(batch: Batch) -> int:
    """Return the tokens of a batch, or its images."""
    return batch.inputs.numel() if batch.inputs.dim() == 2 else len(batch.inputs)
