"""Which dimensions of the state rise, fall or swing over steps, its growth taken out, beside untrained networks."""

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
    """One network's dimensions; arrays (width,) but for `sizes`."""

    sizes: Array
    """(steps + 1, width): mean size of a dimension, the state's root mean square being 1."""
    slopes: Array
    """Mean over sequences of the least-squares slope of the size, a step."""
    low: Array
    high: Array
    p_values: Array
    swings: Mask
    """Whether the size goes up and later down, or down and up, by differences that were found."""
    sequences: int


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("dimension_wise",)

    def passes(self, subject: PnnSubject) -> int:
        return 1 + TWINS

    def __call__(self, subject: PnnSubject) -> Finding:
        trained = dimensions(states_by_sequence(subject.network, subject.batches))
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
    """Test the dimensions of sequences of states (steps + 1, tokens, width); a sequence counts as one."""
    sizes = np.stack([
        (states / states.square().mean(-1, keepdim=True).sqrt()).abs().mean(1).numpy() for states in sequences
    ])  # fmt: skip
    steps = np.arange(sizes.shape[1]) - (sizes.shape[1] - 1) / 2
    slopes = np.einsum("stw,t->sw", sizes, steps) / (steps @ steps)
    low, high = _intervals(slopes)
    return Dimensions(
        sizes=sizes.mean(0), slopes=slopes.mean(0), low=low, high=high, p_values=_p_values(slopes),
        swings=_swings(sizes), sequences=len(sizes),
    )  # fmt: skip


def _p_values(values: Array) -> Array:
    """Return Student's t test over sequences, the first axis; a column that never varies has 1, or 0 unless it is 0."""
    mean, spread = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
    t = np.divide(np.abs(mean), spread, out=np.where(mean == 0, 0.0, np.inf), where=spread > 0)
    return 2 * stats.t.sf(t, len(values) - 1)


def _intervals(values: Array) -> tuple[Array, Array]:
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    return values.mean(0) - half, values.mean(0) + half


def _swings(sizes: Array) -> Mask:
    """Return which dimensions have found differences of both signs, adjusted over dimensions and steps, (width,)."""
    changes = np.diff(sizes, axis=1)
    p_values = _p_values(changes)
    found = stats.false_discovery_control(p_values.ravel()).reshape(p_values.shape) <= ALPHA
    up, down = (found & (sign * changes.mean(0) > 0) for sign in (1, -1))
    return up.any(0) & down.any(0)


def _compared(found: Dimensions) -> list[Comparison]:
    return adjusted([
        Comparison(
            name=f"dimension {number}: slope", effect=float(found.slopes[number]), low=float(found.low[number]),
            high=float(found.high[number]), p_value=float(found.p_values[number]), count=found.sequences,
        )
        for number in range(len(found.slopes))
    ])  # fmt: skip


def _kinds(found: Dimensions) -> list[str]:
    """Return the kind of each dimension: a swing is told before a slope, which says less of it."""
    q_values = stats.false_discovery_control(found.p_values)
    trends = np.where(found.slopes > 0, "accumulator", "selector")
    kinds = np.where(found.swings, "oscillator", np.where(q_values <= ALPHA, trends, "no trend found"))
    return [str(kind) for kind in kinds]


def _counted(kinds: list[str]) -> dict[str, int]:
    return {kind: kinds.count(kind) for kind in KINDS}


def _verdict(kinds: list[str], twins: list[list[str]]) -> str:
    """Say how many dimensions are of each kind, and of which kinds that is unlike untrained networks."""
    tested = adjusted([
        beyond_draws(kind, kinds.count(kind), [float(twin.count(kind)) for twin in twins]) for kind in KINDS
    ])  # fmt: skip
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS)
    unlike = [f"{one.name} ({one.effect:+.1f})" for one in tested if one.found]
    compared = f"unlike untrained networks in {', '.join(unlike)}" if unlike else "as in untrained networks"
    return f"Of {len(kinds)} dimensions: {told}; {compared}."


def _panels(found: Dimensions, kinds: list[str], twins: list[list[str]]) -> list[Panel]:
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
