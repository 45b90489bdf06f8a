"""Measure whether later steps change the state more than earlier ones, relative to its size, and due to training.

The published measure, the size of the state itself, grows in any residual network, trained or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raysweep.contracts import Array
from raysweep.science.pnn.activity import activity
from raysweep.science.pnn.subject import TWINS, PnnSubject
from raysweep.science.statistics.finding import Comparison, Finding, Panel, adjusted, by_step
from raysweep.science.statistics.resampling import Ints, beyond_draws, intervals, paired

MEASURED = (
    "|delta_t| / |h_{t-1}| of every token at each step, against untrained networks of the same shape on the same "
    "text. |h| itself is shown, not tested: it grows in any residual network, trained or not."
)
TREND = "last step - first step"
TREND_OF_TRAINING = f"{TREND}, trained - untrained"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("layer_wise_activity", "layerwise_activity")

    def passes(self, subject: PnnSubject) -> int:
        return 1 + TWINS

    def __call__(self, subject: PnnSubject) -> Finding:
        measured = activity(subject.network, subject.batches)
        # Untrained networks run on the same text: what differs is the weights alone.
        nulls = [activity(twin, subject.batches) for twin in subject.twins()]
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
    """Return the finding that follows from relative updates.

    Args:
        trained: (steps, tokens), of the network.
        untrained: the same of each untrained network.
        sequences: (tokens,).
        norms: sizes of the states, (steps + 1, tokens), of the network and of the mean untrained one.
    """
    comparisons = _compared(trained, untrained, sequences, generator)
    # Shown beside: from the embedding to the last step, how many times larger the state is.
    growth = {name: float(values[-1].mean() / values[0].mean()) for name, values in norms.items()}
    return Finding(
        experiment="step_activity",
        measured=MEASURED,
        verdict=f"{verdict(comparisons)} {_growth(growth)}",
        comparisons=comparisons,
        figures={
            "relative_update": trained.mean(1).tolist(),
            "relative_update_untrained": [of_twin.mean(1).tolist() for of_twin in untrained],
            "state_norm": {name: values.mean(1).tolist() for name, values in norms.items()},
            "growth_of_state_norm": growth,
        },
        panels=_panels({"trained": trained, "untrained": np.mean(untrained, axis=0)}, norms, sequences, generator),
    )


def _compared(
    trained: Array, untrained: Sequence[Array], sequences: Ints, generator: np.random.Generator
) -> list[Comparison]:
    """Test the activity of each step against untrained networks, and its trend over steps against none and theirs."""
    comparisons = [
        beyond_draws(
            f"step {step + 1}: trained - untrained", float(of_step.mean()), [one[step].mean() for one in untrained]
        )
        for step, of_step in enumerate(trained)
    ]
    # One step has no trend.
    if len(trained) > 1:
        trend, trends = _trend(trained), [float(_trend(of_twin).mean()) for of_twin in untrained]
        # Whether activity changes over steps is tested within the network, by sequence. Whether training did that is
        # tested by network: sequences cannot show how much random weights matter.
        comparisons += [paired(TREND, trend, sequences, generator),
                        beyond_draws(TREND_OF_TRAINING, float(trend.mean()), trends)]  # fmt: skip
    return adjusted(comparisons)


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Say how activity changes over steps, and whether training changed that, beside untrained networks."""
    found = {comparison.name: comparison for comparison in comparisons}
    if TREND not in found:
        return "One step has no trend."
    trend, caused = found[TREND], found[TREND_OF_TRAINING]
    # A trend within the network is no effect of training until it differs from that of untrained ones.
    course = "rises" if trend.above else "falls" if trend.below else "is not found to change"
    said = f"|delta|/|h| {course} from the first step to the last ({trend.effect:+.3f})"
    if not caused.found:
        return f"{said}, not found to differ from untrained networks ({trend.effect - caused.effect:+.3f})."
    return f"{said}; training moves activity to {'later' if caused.above else 'earlier'} steps."


def _trend(updates: Array) -> Array:
    """Return the relative update of the last step minus that of the first, (tokens,), of updates (steps, tokens)."""
    difference: Array = updates[-1] - updates[0]
    return difference


def _growth(growth: Mapping[str, float]) -> str:
    return "Mean |h| grows " + ", ".join(f"{factor:.2f}-fold {name}" for name, factor in growth.items()) + "."


def _panels(
    updates: Mapping[str, Array], norms: Mapping[str, Array], sequences: Ints, generator: np.random.Generator
) -> list[Panel]:
    return [
        Panel(title="Relative update", kind="lines", x_label="step", y_label="|delta| / |h|",
              series=[by_step(name, intervals(values.T, sequences, generator)) for name, values in updates.items()]),
        Panel(title="State norm (grows by itself)", kind="lines", x_label="step", y_label="|h|",
              series=[by_step(name, intervals(values.T, sequences, generator), first=0)
                      for name, values in norms.items()]),
    ]  # fmt: skip
