"""Measure loss, accuracy, entropy and margin after each step, how far it moves the state, and whether it helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from raysweep.science.pnn.activity import Activity, activity
from raysweep.science.pnn.subject import PnnSubject, visible_batches
from raysweep.science.pnn.trace import Predictions, predictions
from raysweep.science.statistics.finding import Comparison, Finding, Panel, adjusted, by_step
from raysweep.science.statistics.resampling import intervals, paired


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("step_trace",)

    def passes(self, subject: PnnSubject) -> int:
        return 3

    def __call__(self, subject: PnnSubject) -> Finding:
        masked = subject.predictions()
        # Visible tokens show how well a network keeps what it reads; masked ones what it infers.
        visible = predictions(subject.network, visible_batches(subject.batches, subject.facts))
        moved = activity(subject.network, subject.batches)
        comparisons = _compared(masked, subject)
        generator = subject.generator("trace intervals")
        # Intervals are for the picture alone; tests above have random numbers of their own.
        losses, hits = (intervals(values.T, masked.sequences, generator) for values in (masked.loss, masked.correct))
        updates = intervals(moved.relative_update.T, moved.sequences, generator)
        return Finding(
            experiment="trace",
            measured="Loss of masked tokens after each step minus that before it, on the same masks.",
            verdict=_verdict(comparisons),
            comparisons=comparisons,
            figures={
                "masked": _predicted(masked) | _moved(moved, True),
                "unmasked": _predicted(visible) | _moved(moved, False),
            },
            panels=[
                _panel("loss", "nats", [by_step("masked", losses, first=0)]),
                _panel("accuracy", "share", [by_step("masked", hits, first=0)]),
                _panel("relative update", "|delta| / |h|", [by_step("all tokens", updates)]),
            ],
        )


def _compared(masked: Predictions, subject: PnnSubject) -> list[Comparison]:
    """Test the change of the loss at each step, paired by token."""
    generator = subject.generator("trace")
    # Each step against the one before it, not against the embedding: the question is what that step adds.
    return adjusted([
        paired(f"step {step}: loss - before", change, masked.sequences, generator)
        for step, change in enumerate(np.diff(masked.loss, axis=0), 1)
    ])  # fmt: skip


def _verdict(comparisons: list[Comparison]) -> str:
    """Say at which steps the loss falls, rises, or is not found to change."""
    kinds: dict[str, list[int]] = {"falls": [], "rises": [], "is not found to change": []}
    for step, change in enumerate(comparisons, 1):
        kind = "is not found to change" if not change.found else "falls" if change.effect < 0 else "rises"
        kinds[kind].append(step)
    said = [f"{kind} at step {', '.join(map(str, steps))}" for kind, steps in kinds.items() if steps]
    return f"The loss {'; '.join(said)}."


def _predicted(found: Predictions) -> dict[str, Any]:
    """Return a list over steps of each figure, mean over tokens, from step 0, the embedding."""
    measured = {"loss": found.loss, "accuracy": found.correct, "entropy": found.entropy, "margin": found.margin,
                "divergence": found.divergence}  # fmt: skip
    return {"predicted": len(found.labels)} | {name: values.mean(1).tolist() for name, values in measured.items()}


def _moved(moved: Activity, masked: bool) -> dict[str, Any]:
    """Return a list over steps of each figure, mean over masked or over other tokens; padding is left out."""
    # Networks without a gate have no figures of it.
    group = moved.masked == masked
    measured = {"state_norm": moved.state_norm, "update_norm": moved.update_norm,
                "relative_update": moved.relative_update, "gate_mean": moved.gate_mean,
                "gate_open": moved.gate_open}  # fmt: skip
    return {"tokens": int(group.sum())} | {
        name: values[:, group].mean(1).tolist() for name, values in measured.items() if values is not None
    }


def _panel(title: str, y_label: str, series: list[Any]) -> Panel:
    return Panel(title=title, kind="lines", x_label="step", y_label=y_label, series=series)
