"""Classify the dimensions of the state as rising, falling or swinging over steps, beside untrained networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import stats

from raysweep.contracts import Array, Mask
from raysweep.science.pnn.activity import states_by_sequence
from raysweep.science.pnn.subject import TWINS, PnnSubject
from raysweep.science.statistics.finding import ALPHA, Comparison, Finding, Panel, Series, adjusted, with_range
from raysweep.science.statistics.resampling import CONFIDENCE, beyond_draws

KINDS = ("accumulator", "selector", "oscillator", "no trend found")


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The course of every dimension of one network over its steps; arrays (width,) but for `sizes`."""

    sizes: Array
    """(steps + 1, width): mean absolute value of a dimension, the root mean square of the state being 1."""
    slopes: Array
    """Mean over sequences of the least-squares slope of the size over steps."""
    low: Array
    high: Array
    """Bounds of the slopes' 95% intervals over sequences."""
    p_values: Array
    """Of no slope, two-sided, not adjusted."""
    swings: Mask
    """Whether the size has both a rise and a fall between neighbouring steps that were found."""
    sequences: int


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("dimension_wise",)

    def passes(self, subject: PnnSubject) -> int:
        return 1 + TWINS

    def __call__(self, subject: PnnSubject) -> Finding:
        trained = dimensions(states_by_sequence(subject.network, subject.batches))
        # Untrained networks pass the same tests: their numbers of each kind are those that come by themselves.
        twins = [_kinds(dimensions(states_by_sequence(twin, subject.batches))) for twin in subject.twins()]
        kinds = _kinds(trained)
        return Finding(
            experiment="dimensions",
            measured="Slope over steps of the size of each dimension, each state scaled to a root mean square of 1, "
            f"against no slope; the number of each kind of dimension against that of {TWINS} untrained networks.",
            verdict=_verdict(kinds, twins),
            comparisons=_compared(trained),
            figures={
                "trained": _counted(kinds), "untrained": [_counted(twin) for twin in twins], "kind": kinds,
                "size": trained.sizes.tolist(),
            },
            panels=_panels(trained, kinds, twins),
        )  # fmt: skip


def dimensions(sequences: list[torch.Tensor]) -> Dimensions:
    """Test the course of every dimension, with sequences as the units.

    Args:
        sequences: states of each, (steps + 1, tokens, width).
    """
    # Scaled to a root mean square of 1: the state grows from step to step in any residual network, and every dimension
    # would count as rising.
    sizes = np.stack([
        (states / states.square().mean(-1, keepdim=True).sqrt()).abs().mean(1).numpy() for states in sequences
    ])  # fmt: skip
    # Centred steps make the slope a single product: sum (t - mean t) y / sum (t - mean t)^2.
    steps = np.arange(sizes.shape[1]) - (sizes.shape[1] - 1) / 2
    slopes = np.einsum("stw,t->sw", sizes, steps) / (steps @ steps)
    low, high = _intervals(slopes)
    return Dimensions(
        sizes=sizes.mean(0), slopes=slopes.mean(0), low=low, high=high, p_values=_p_values(slopes),
        swings=_swings(sizes), sequences=len(sizes),
    )  # fmt: skip


def _p_values(values: Array) -> Array:
    """Return the two-sided p-values of Student's t test of mean 0 over sequences, the first axis.

    With few sequences the smallest p-value of sign flips would be too large for hundreds of dimensions.
    """
    # Where a column does not vary over sequences, t is 0 if the column is 0, else infinite.
    mean, spread = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
    t = np.divide(np.abs(mean), spread, out=np.where(mean == 0, 0.0, np.inf), where=spread > 0)
    return 2 * stats.t.sf(t, len(values) - 1)


def _intervals(values: Array) -> tuple[Array, Array]:
    """Return the bounds of Student's 95% intervals of the means over sequences, the first axis."""
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    return values.mean(0) - half, values.mean(0) + half


def _swings(sizes: Array) -> Mask:
    """Return which dimensions have differences of both signs that were found, (width,).

    Args:
        sizes: (sequences, steps + 1, width). Tests are adjusted over dimensions and steps.
    """
    # The published rule took any change of sign for a swing, so that every dimension with noise was one.
    changes = np.diff(sizes, axis=1)
    p_values = _p_values(changes)
    found = stats.false_discovery_control(p_values.ravel()).reshape(p_values.shape) <= ALPHA
    up, down = (found & (sign * changes.mean(0) > 0) for sign in (1, -1))
    return up.any(0) & down.any(0)


def _compared(found: Dimensions) -> list[Comparison]:
    """Return the tested slope of each dimension, adjusted over all of them."""
    return adjusted([
        Comparison(
            name=f"dimension {number}: slope", effect=float(found.slopes[number]), low=float(found.low[number]),
            high=float(found.high[number]), p_value=float(found.p_values[number]), count=found.sequences,
        )
        for number in range(len(found.slopes))
    ])  # fmt: skip


def _kinds(found: Dimensions) -> list[str]:
    """Return the kind of each dimension. One that both swings and has a slope counts as a swing."""
    q_values = stats.false_discovery_control(found.p_values)
    trends = np.where(found.slopes > 0, "accumulator", "selector")
    kinds = np.where(found.swings, "oscillator", np.where(q_values <= ALPHA, trends, "no trend found"))
    return [str(kind) for kind in kinds]


def _counted(kinds: list[str]) -> dict[str, int]:
    """Return how many dimensions are of each kind."""
    return {kind: kinds.count(kind) for kind in KINDS}


def _verdict(kinds: list[str], twins: list[list[str]]) -> str:
    """Say how many dimensions are of each kind, and for which kinds untrained networks have other numbers."""
    # Some dimensions rise and fall in any network: a number of them means something beside those of untrained ones.
    tested = adjusted([
        beyond_draws(kind, kinds.count(kind), [float(twin.count(kind)) for twin in twins]) for kind in KINDS
    ])  # fmt: skip
    said = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS)
    unlike = [f"{one.name} ({one.effect:+.1f})" for one in tested if one.found]
    compared = f"unlike untrained networks in {', '.join(unlike)}" if unlike else "as in untrained networks"
    return f"Of {len(kinds)} dimensions: {said}; {compared}."


def _panels(found: Dimensions, kinds: list[str], twins: list[list[str]]) -> list[Panel]:
    # Dimensions have no order of their own; sorted by slope, the line shows how many differ from 0.
    order = np.argsort(found.slopes)
    untrained = np.array([[twin.count(kind) for kind in KINDS] for twin in twins], float)
    return [
        Panel(
            title="kinds of dimensions", kind="bars", x_label="", y_label="dimensions",
            series=[
                Series(name="trained", x=list(KINDS), y=[float(kinds.count(kind)) for kind in KINDS]),
                with_range("untrained, all", list(KINDS), untrained),
            ],
        ),
        Panel(
            title="slopes", kind="lines", x_label="dimension, by slope", y_label="slope a step", level=0.0,
            series=[
                Series(name="95%", y=found.slopes[order].tolist(), low=found.low[order].tolist(),
                       high=found.high[order].tolist())
            ],
        ),
    ]  # fmt: skip
