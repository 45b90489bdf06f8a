"""Measure whether the order of the steps matters: the trend of updates and the similarity of neighbouring steps.

The null permutes the steps of each sequence: it has the same updates and states, but no order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from raysweep.contracts import Array
from raysweep.errors import NotApplicableError
from raysweep.science.pnn.activity import states_by_sequence
from raysweep.science.pnn.subject import PnnSubject
from raysweep.science.statistics.finding import Comparison, Finding, Interval, Panel, Series, adjusted, by_step
from raysweep.science.statistics.resampling import RESAMPLES, interval, intervals, share_as_extreme
from raysweep.science.statistics.similarity import alignments, orders, update_cosines

FEWEST_STEPS = 3
"""With fewer, every order has the same neighbours."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryMetrics:
    """Metrics of the steps of one network, for each sequence."""

    relative_update: Array
    """(sequences, steps): mean over tokens of |delta| / |h|."""
    cosines: Array
    """(sequences, steps, steps): mean cosine of the updates of two steps."""
    alignments: Array
    """(sequences, steps + 1, steps + 1): CKA of the states after two steps."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("meg",)

    def passes(self, subject: PnnSubject) -> int:
        return 2

    def __call__(self, subject: PnnSubject) -> Finding:
        steps = subject.network.config.num_steps
        if steps < FEWEST_STEPS:
            raise NotApplicableError(
                f"it permutes steps: it takes {FEWEST_STEPS} or more, and this network has {steps}."
            )
        # The untrained network is drawn beside, not tested: the null here is the order of the network's own steps.
        trained = trajectory_metrics(states_by_sequence(subject.network, subject.batches))
        untrained = trajectory_metrics(states_by_sequence(subject.untrained, subject.batches))
        comparisons = compared(trained, subject.generator("trajectory"))
        return Finding(
            experiment="trajectory",
            measured="Trend of |delta| / |h| over steps, and similarity of neighbouring steps minus that of any two, "
            "against the same steps in random order within each sequence. There is no time and no frequency in it.",
            verdict=_verdict(comparisons),
            comparisons=comparisons,
            figures={"trained": _figures(trained), "untrained": _figures(untrained)},
            panels=_panels(trained, untrained, subject),
        )


def trajectory_metrics(sequences: list[torch.Tensor]) -> TrajectoryMetrics:
    """Return the metrics of sequences of states (steps + 1, tokens, width)."""
    # Updates are relative to the state before: the state grows from step to step in any residual network.
    ratios = [states.diff(dim=0).norm(dim=-1) / states[:-1].norm(dim=-1) for states in sequences]
    return TrajectoryMetrics(
        relative_update=np.stack([ratio.mean(-1).numpy() for ratio in ratios]),
        cosines=np.stack([update_cosines(states) for states in sequences]),
        alignments=np.stack([alignments(states) for states in sequences]),
    )


def compared(found: TrajectoryMetrics, generator: np.random.Generator) -> list[Comparison]:
    """Test each metric against the same steps in random order."""
    return adjusted([
        _against_order("trend of relative update", found.relative_update, _trend, generator),
        _against_order("cosine of neighbouring updates - any two", found.cosines, _neighbours, generator),
        _against_order("alignment of neighbouring states - any two", found.alignments, _neighbours, generator),
    ])  # fmt: skip


def _against_order(name: str, values: Array, statistic: Any, generator: np.random.Generator) -> Comparison:
    """Test the mean over sequences of a statistic of the order of the steps, among random orders.

    Args:
        values: (sequences, steps, ...).
        statistic: (values, orders (sequences, steps)) -> (sequences,).
    """
    # Each sequence has an order of its own: one order for all would leave only as many nulls as there are orders of the
    # steps, 6 of three steps.
    count, steps = values.shape[:2]
    # The order that the steps have, in the form of the random ones.
    own = statistic(values, np.tile(np.arange(steps), (count, 1)))
    # The statistic of the mean over sequences in random order, RESAMPLES times.
    null = [
        statistic(values, order).mean()
        for order in orders(count, steps, RESAMPLES, generator)
    ]  # fmt: skip
    found = interval(own, np.arange(count), generator)
    p_value = share_as_extreme(abs(found.mean), np.abs(null))
    return Comparison(name=name, effect=found.mean, low=found.low, high=found.high, p_value=p_value, count=count)


def _trend(values: Array, order: Any) -> Array:
    """Return the least-squares slope over steps of each sequence, (sequences,), with its steps in an order."""
    # Centred steps make the slope a single product.
    steps = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    return np.take_along_axis(values, order, 1) @ steps / (steps @ steps)


def _neighbours(values: Array, order: Any) -> Array:
    """Return the mean similarity of steps that follow each other in an order minus that of any two, (sequences,)."""
    rows = np.arange(len(values))[:, None]
    steps = values.shape[1]
    # `values` is symmetric, so the direction of a pair does not matter.
    together = values[rows, order[:, :-1], order[:, 1:]].mean(1)
    # All pairs but those of a step with itself, whose similarity is 1.
    any_two = (values.sum((1, 2)) - np.trace(values, axis1=1, axis2=2)) / (steps * (steps - 1))
    return together - any_two


def _verdict(comparisons: list[Comparison]) -> str:
    """Say by which metrics the order of the steps is found to matter."""
    found = [one for one in comparisons if one.found]
    if not found:
        return "Not found that the order of the steps matters."
    return f"The order of the steps matters: {'; '.join(f'{one.name} {one.effect:+.3f}' for one in found)}."


def _figures(found: TrajectoryMetrics) -> dict[str, Any]:
    """Return the means of all metrics over sequences."""
    return {
        "relative_update": found.relative_update.mean(0).tolist(),
        "cosines": found.cosines.mean(0).tolist(),
        "alignments": found.alignments.mean(0).tolist(),
    }


def _map(values: Array, first: int) -> Series:
    """Return a heat map of the similarity of each two steps, beginning with step `first`."""
    steps = list(range(first, first + len(values)))
    return Series(name="mean over sequences", x=steps, rows=steps, y=values.tolist())


def _panels(trained: TrajectoryMetrics, untrained: TrajectoryMetrics, subject: PnnSubject) -> list[Panel]:
    generator = subject.generator("trajectory panels")
    rows: dict[str, list[Interval]] = {
        name: intervals(one.relative_update, np.arange(len(one.relative_update)), generator)
        for name, one in (("trained", trained), ("untrained", untrained))
    }
    # There is an update for each step from 1, but a state from 0, the embedding.
    maps = {"cosine of updates": (trained.cosines, 1), "alignment (CKA) of states": (trained.alignments, 0)}
    return [
        Panel(
            title="relative update", kind="lines", x_label="step", y_label="|delta| / |h|",
            series=[by_step(name, found) for name, found in rows.items()],
        ),
        *(
            Panel(
                title=name, kind="heat_map", x_label="step", y_label="step",
                series=[_map(values.mean(0), first)],
            )
            for name, (values, first) in maps.items()
        ),
    ]  # fmt: skip
