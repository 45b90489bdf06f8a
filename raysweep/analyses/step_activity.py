"""Whether later steps change the state more than earlier ones, relative to its size, and more than without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from raysweep.contracts import Array
from raysweep.findings.activity import activity
from raysweep.findings.finding import Comparison, Finding, Panel, Series, adjusted
from raysweep.findings.resampling import Ints, intervals, paired
from raysweep.findings.subject import Subject, untrained_twin

TWINS = 4
"""Untrained networks beside the subject's own."""
MEASURED = (
    "|delta_t| / |h_{t-1}| of every token at each step, against the mean of untrained networks of the same shape "
    "on the same text. |h| itself is shown, not judged: it grows in any residual network, trained or not."
)
TREND = "last step - first step"
TREND_OF_TRAINING = f"{TREND}, trained - untrained"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("layer_wise_activity", "layerwise_activity")

    def passes(self, subject: Subject) -> int:
        return 2 + TWINS

    def __call__(self, subject: Subject) -> Finding:
        measured = activity(subject.network, subject.batches)
        generator = subject.generator("step_activity twins")
        seeds = generator.integers(2**62, size=TWINS).tolist()
        twins = [subject.untrained, *(_twin(subject, seed) for seed in seeds)]
        nulls = [activity(twin, subject.batches) for twin in twins]
        return conclude(
            measured.relative_update, [null.relative_update for null in nulls], measured.sequences,
            {"trained": measured.state_norm, "untrained": np.mean([null.state_norm for null in nulls], axis=0)},
            subject.generator("step_activity"),
        )  # fmt: skip


def conclude(
    trained: Array,
    untrained: Sequence[Array],
    sequences: Ints,
    norms: Mapping[str, Array],
    generator: np.random.Generator,
) -> Finding:
    """Judge relative updates, (steps, tokens) of the network and of each untrained one.

    Args:
        sequences: (tokens,), which sequence each is of.
        norms: of the states, (steps + 1, tokens), of the network and of the untrained ones.
    """
    null = np.mean(untrained, axis=0)
    tested = {f"step {step + 1}, trained - untrained": trained[step] - null[step] for step in range(len(trained))}
    if len(trained) > 1:
        tested[TREND] = trained[-1] - trained[0]
        tested[TREND_OF_TRAINING] = tested[TREND] - (null[-1] - null[0])
    comparisons = adjusted([paired(name, values, sequences, generator) for name, values in tested.items()])
    trends = [float((of_twin[-1] - of_twin[0]).mean()) for of_twin in untrained]
    growth = {name: float(values[-1].mean() / values[0].mean()) for name, values in norms.items()}
    return Finding(
        experiment="step_activity",
        measured=MEASURED,
        verdict=f"{verdict(comparisons, trends)} {_growth(growth)}",
        comparisons=comparisons,
        figures={
            "relative_update": trained.mean(1).tolist(),
            "relative_update_untrained": [of_twin.mean(1).tolist() for of_twin in untrained],
            "trend_untrained": trends,
            "state_norm": {name: values.mean(1).tolist() for name, values in norms.items()},
            "growth_of_state_norm": growth,
        },
        panels=_panels({"trained": trained, "untrained": null}, norms, sequences, generator),
    )


def verdict(comparisons: Sequence[Comparison], trends: Sequence[float]) -> str:
    """Say whether activity moves to later steps, and whether training is the cause.

    It is where the trend differs from the untrained networks' mean, and lies outside of what any of them has.

    Args:
        trends: the mean trend of each untrained network.
    """
    found = {comparison.name: comparison for comparison in comparisons}
    if TREND not in found:
        return "One step has no trend."
    trend, caused = found[TREND], found[TREND_OF_TRAINING]
    course = "rises" if trend.above else "falls" if trend.below else "is not found to change"
    said = f"|delta|/|h| {course} from the first step to the last ({trend.effect:+.3f})"
    if caused.above and trend.effect > max(trends):
        return f"{said}; training moves activity to later steps."
    if caused.below and trend.effect < min(trends):
        return f"{said}; training moves activity to earlier steps."
    return f"{said}, not told apart from untrained networks ({min(trends):+.3f} to {max(trends):+.3f})."


def _growth(growth: Mapping[str, float]) -> str:
    return "Mean |h| grows " + ", ".join(f"{factor:.2f}-fold {name}" for name, factor in growth.items()) + "."


def _twin(subject: Subject, seed: int) -> Any:
    parameter = next(subject.network.parameters())
    return untrained_twin(subject.network, seed).to(parameter.device)


def _panels(
    updates: Mapping[str, Array], norms: Mapping[str, Array], sequences: Ints, generator: np.random.Generator
) -> list[Panel]:
    return [
        Panel(title="Relative update", kind="lines", x_label="step", y_label="|delta| / |h|",
              series=[_line(name, values, 1, sequences, generator) for name, values in updates.items()]),
        Panel(title="State norm (grows by itself)", kind="lines", x_label="step", y_label="|h|",
              series=[_line(name, values, 0, sequences, generator) for name, values in norms.items()]),
    ]  # fmt: skip


def _line(name: str, values: Array, first: int, sequences: Ints, generator: np.random.Generator) -> Series:
    steps = intervals(values.T, sequences, generator)
    return Series(
        name=name, x=list(range(first, first + len(steps))), y=[step.mean for step in steps],
        low=[step.low for step in steps], high=[step.high for step in steps],
    )  # fmt: skip
