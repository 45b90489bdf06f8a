"""Measure how far gates are open at each step, against chance and against untrained networks; padding is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from raysweep.contracts import Array, Mask
from raysweep.science.pnn.activity import Activity, activity
from raysweep.science.pnn.subject import TWINS, PnnSubject
from raysweep.science.statistics.finding import Comparison, Finding, Panel, Series, adjusted, with_range
from raysweep.science.statistics.resampling import beyond_draws, paired

CHANCE = 0.5
"""Share of open gates where queries and keys are unrelated: a gate, sigmoid(q k / tau), exceeds 0.5 where the signs of
q and k agree, whatever tau is."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("gate_statistics",)

    def passes(self, subject: PnnSubject) -> int:
        return 1 + TWINS

    def __call__(self, subject: PnnSubject) -> Finding:
        subject.require_gate()
        trained = activity(subject.network, subject.batches)
        everyone = np.ones_like(trained.masked)
        twins = [_figures(activity(twin, subject.batches), everyone) for twin in subject.twins()]
        comparisons = _compared(trained, twins, subject)
        # Masked tokens all begin with the embedding of the mask token, so their gates may differ from the others'.
        groups = {"all": everyone, "masked": trained.masked, "unmasked": ~trained.masked}
        return Finding(
            experiment="gates",
            measured="The share of gates above 0.5 at each step, over tokens that are no padding, against 50% and "
            f"against {TWINS} untrained networks.",
            verdict=_verdict(comparisons, trained.update_norm.shape[0]),
            comparisons=comparisons,
            figures={name: _figures(trained, group) for name, group in groups.items()} | {"untrained": twins},
            panels=[
                _panel("open gates", "share above 0.5", "open_share", trained, twins, CHANCE),
                _panel("variance across tokens", "mean variance of a gate", "variance_across_tokens", trained, twins),
            ],
        )


def _compared(trained: Activity, twins: list[dict[str, Any]], subject: PnnSubject) -> list[Comparison]:
    """Test the open share at each step against chance by sequence, and against untrained networks by network."""
    # The share over sequences says whether the gate is off chance; over networks, whether training put it there.
    generator = subject.generator("gates")
    shares = np.array([twin["open_share"] for twin in twins])
    tested = []
    for step, share in enumerate(_open(trained), 1):
        tested += [
            paired(f"step {step}: open share - chance", share - CHANCE, trained.sequences, generator),
            beyond_draws(f"step {step}: open share - untrained", float(share.mean()), shares[:, step - 1].tolist()),
        ]
    return adjusted(tested)


def _open(one: Activity) -> Array:
    """Return the share of open gates, (steps, tokens); the subject was checked to have a gate."""
    assert one.gate_open is not None
    return one.gate_open


def _figures(one: Activity, group: Mask) -> dict[str, Any]:
    """Return a list over steps of each figure, mean over some tokens.

    `sd` is the deviation over tokens and dimensions, `share_of_all_updates` the mean |delta| of a step over the sum of
    those of all steps.
    """
    assert one.gate_mean is not None and one.gate_square is not None and one.gate_variance is not None
    mean, square = one.gate_mean[:, group].mean(1), one.gate_square[:, group].mean(1)
    # |delta| = |g p|: what a step contributes, which an open gate before a small proposal does not.
    contributed = one.update_norm[:, group].mean(1)
    return {
        "tokens": int(group.sum()),
        "mean": mean.tolist(),
        # The mean square minus the squared mean can be a little below 0 by rounding.
        "sd": np.sqrt(np.maximum(square - mean**2, 0)).tolist(),
        "open_share": _open(one)[:, group].mean(1).tolist(),
        "participation": one.participation[:, group].mean(1).tolist(),
        "share_of_all_updates": (contributed / contributed.sum()).tolist(),
        "variance_across_tokens": one.gate_variance.mean(1).tolist(),
    }


def _verdict(comparisons: list[Comparison], steps: int) -> str:
    """Say at which steps the open share differs both from chance and from that of untrained networks."""
    # A share off 50% may be where untrained networks are, too; one that is unlike theirs may still be at chance.
    selects = [
        step
        for step in range(1, steps + 1)
        if all(one.found for one in comparisons if one.name.startswith(f"step {step}:"))
    ]
    if not selects:
        return "At no step does the share of open gates differ from both chance and untrained networks."
    which = "every step" if len(selects) == steps else f"step {', '.join(map(str, selects))} of {steps}"
    return f"The share of open gates differs from both chance and untrained networks at {which}."


def _panel(
    title: str, label: str, name: str, trained: Activity, twins: list[dict[str, Any]], level: float | None = None
) -> Panel:
    # Over all tokens, as in untrained networks.
    own = _figures(trained, np.ones_like(trained.masked))[name]
    untrained = np.array([twin[name] for twin in twins])
    steps = list(range(1, len(own) + 1))
    return Panel(
        title=title, kind="lines", x_label="step", y_label=label, level=level,
        series=[
            Series(name="trained", x=steps, y=own),
            with_range("untrained, all", steps, untrained),
        ],
    )  # fmt: skip
