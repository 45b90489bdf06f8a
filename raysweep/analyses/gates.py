"""What gates let through at each step, against a gate by chance and against the untrained network; padding left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from raysweep.contracts import Array, Mask
from raysweep.findings.activity import Activity, activity
from raysweep.findings.finding import Comparison, Finding, Interval, Panel, Series, adjusted, by_step
from raysweep.findings.resampling import intervals, paired
from raysweep.findings.subject import Subject

CHANCE = 0.5
"""Share of gates above 0.5 where queries and keys are unrelated: a gate is above it where their signs agree."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("gate_statistics",)

    def passes(self, subject: Subject) -> int:
        return 2

    def __call__(self, subject: Subject) -> Finding:
        subject.require_gate()
        trained, untrained = activity(subject.network, subject.batches), activity(subject.untrained, subject.batches)
        comparisons = _compared(trained, untrained, subject)
        generator = subject.generator("gates intervals")
        shares = {
            name: intervals(_open(one).T, one.sequences, generator)
            for name, one in (("trained", trained), ("untrained", untrained))
        }
        groups = {"all": np.ones_like(trained.masked), "masked": trained.masked, "unmasked": ~trained.masked}
        return Finding(
            experiment="gates",
            measured="The share of gates above 0.5 at each step, over tokens that are no padding, against 50% and "
            "against the same network untrained.",
            verdict=_verdict(comparisons, trained.update_norm.shape[0]),
            comparisons=comparisons,
            figures={name: _figures(trained, group) for name, group in groups.items()}
            | {"untrained": _figures(untrained, groups["all"])},
            panels=[_shares(shares), _variances(trained, untrained)],
        )


def _compared(trained: Activity, untrained: Activity, subject: Subject) -> list[Comparison]:
    generator = subject.generator("gates")
    rows = zip(_open(trained), _open(untrained), strict=True)
    return adjusted([
        paired(f"step {step}: open share - {name}", ours - other, trained.sequences, generator)
        for step, (ours, theirs) in enumerate(rows, 1)
        for name, other in (("chance", CHANCE), ("untrained", theirs))
    ])  # fmt: skip


def _open(one: Activity) -> Array:
    assert one.gate_open is not None
    return one.gate_open


def _figures(one: Activity, group: Mask) -> dict[str, Any]:
    """Return a list over steps of each figure of some tokens."""
    assert one.gate_mean is not None and one.gate_square is not None and one.gate_variance is not None
    mean, square = one.gate_mean[:, group].mean(1), one.gate_square[:, group].mean(1)
    contributed = one.update_norm[:, group].mean(1)
    return {
        "tokens": int(group.sum()),
        "mean": mean.tolist(),
        "sd": np.sqrt(np.maximum(square - mean**2, 0)).tolist(),
        "open_share": _open(one)[:, group].mean(1).tolist(),
        "participation": one.participation[:, group].mean(1).tolist(),
        "share_of_all_updates": (contributed / contributed.sum()).tolist(),
        "variance_across_tokens": one.gate_variance.mean(1).tolist(),
    }


def _verdict(comparisons: list[Comparison], steps: int) -> str:
    """A gate selects at a step where its open share differs both from chance and from the untrained network's."""
    selects = [
        step
        for step in range(1, steps + 1)
        if all(one.found for one in comparisons if one.name.startswith(f"step {step}:"))
    ]
    if not selects:
        return "At no step do the gates differ from both chance and the untrained network."
    which = "at every step" if len(selects) == steps else f"at step {', '.join(map(str, selects))} of {steps}"
    return f"The share of open gates differs from both chance and the untrained network {which}."


def _shares(shares: dict[str, list[Interval]]) -> Panel:
    return Panel(
        title="open gates", kind="lines", x_label="step", y_label="share above 0.5", level=CHANCE,
        series=[by_step(name, found) for name, found in shares.items()],
    )  # fmt: skip


def _variances(trained: Activity, untrained: Activity) -> Panel:
    assert trained.gate_variance is not None and untrained.gate_variance is not None
    steps = list(range(1, len(trained.gate_variance) + 1))
    return Panel(
        title="variance across tokens", kind="lines", x_label="step", y_label="mean variance of a dimension's gate",
        series=[
            Series(name=name, x=steps, y=one.mean(1).tolist())
            for name, one in (("trained", trained.gate_variance), ("untrained", untrained.gate_variance))
        ],
    )  # fmt: skip
