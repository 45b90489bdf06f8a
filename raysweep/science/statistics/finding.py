"""Findings of analyses as plain data: tested comparisons, figures, a verdict, and panels to draw. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy import stats

from raysweep.contracts import Array

ALPHA = 0.05
"""Largest q-value at which an effect counts as found."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A tested effect with its interval and p-value."""

    name: str
    effect: float
    low: float
    high: float
    """Bounds of the effect's 95% interval."""
    p_value: float
    """Two-sided unless the analysis says otherwise."""
    count: int
    """Independent units of the test: sequences, or untrained networks."""
    q_value: float | None = None
    """p-value adjusted for all comparisons of its analysis; set by `adjusted`."""

    @property
    def interval(self) -> Interval:
        """The effect with its 95% interval."""
        return Interval(mean=self.effect, low=self.low, high=self.high)

    @property
    def found(self) -> bool:
        """Whether the effect counts as found: its q-value is at most ALPHA."""
        # A p-value alone must never decide: an unadjusted comparison is an error of the analysis.
        assert self.q_value is not None, "adjust the comparisons of an analysis first"
        return self.q_value <= ALPHA

    @property
    def above(self) -> bool:
        """Whether an effect above 0 was found."""
        return self.found and self.effect > 0

    @property
    def below(self) -> bool:
        """Whether an effect below 0 was found."""
        return self.found and self.effect < 0


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, row of bars or heat map of a panel."""

    name: str
    y: Sequence[float] | Sequence[Sequence[float]]
    """A heat map has [row][column], row 0 at the top."""
    x: Sequence[float] | Sequence[str] | None = None
    """Default: 0, 1, ..."""
    rows: Sequence[float] | Sequence[str] | None = None
    """Labels of the rows of a heat map, as `x` are those of its columns."""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes in the picture of an analysis."""

    title: str
    kind: Literal["lines", "bars", "heat_map"]
    x_label: str
    y_label: str
    series: Sequence[Series]
    level: float | None = None
    """Height of a horizontal line, such as chance or no effect."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one analysis."""

    experiment: str
    measured: str
    """The measure and its null, in a sentence."""
    verdict: str
    """A sentence computed from the comparisons by the rules of the analysis."""
    comparisons: Sequence[Comparison] = ()
    """All tested effects, adjusted together."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that was measured, as JSON holds it."""
    panels: Sequence[Panel] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data; each comparison says whether it was found."""
        # asdict leaves properties out, and readers of the JSON are not to know ALPHA.
        content = dataclasses.asdict(self)
        for plain, comparison in zip(content["comparisons"], self.comparisons, strict=True):
            plain["found"] = comparison.found
        return content


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with q-values over all of them (Benjamini and Hochberg 1995).

    Of all effects that count as found, at most a share ALPHA is expected to be false.
    """
    # An analysis tests up to hundreds of effects. Controlling the chance of a single false one instead would hide
    # effects that are real, above all where many are.
    if not comparisons:
        return []
    # The procedure holds for independent tests and for those that are positively dependent, such as steps of a network.
    q_values = stats.false_discovery_control([comparison.p_value for comparison in comparisons])
    return [
        dataclasses.replace(comparison, q_value=float(q_value))
        for comparison, q_value in zip(comparisons, q_values, strict=True)
    ]


def with_intervals(name: str, x: Sequence[float] | Sequence[str], estimates: Sequence[Interval]) -> Series:
    """Return a line or a row of bars whose bounds are those of the intervals."""
    return Series(
        name=name,
        x=x,
        y=[estimate.mean for estimate in estimates],
        low=[estimate.low for estimate in estimates],
        high=[estimate.high for estimate in estimates],
    )


def by_step(name: str, estimates: Sequence[Interval], *, first: int = 1) -> Series:
    """Return a line over steps with its intervals; `first` is the step of the first one."""
    return with_intervals(name, list(range(first, first + len(estimates))), estimates)


def with_range(name: str, x: Sequence[float] | Sequence[str], values: Array) -> Series:
    """Return the mean over networks; its bounds are the smallest and the largest value of any network.

    Args:
        values: (networks, points).
    """
    return Series(
        name=name, x=x, y=values.mean(0).tolist(), low=values.min(0).tolist(), high=values.max(0).tolist()
    )  # fmt: skip
