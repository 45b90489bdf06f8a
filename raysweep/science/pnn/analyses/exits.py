"""Measure what tokens that leave early save, at which accuracy, and whether an exit rule is better than chance.

Chance is an exit that lets tokens leave at random after as many steps on average: a rule that is no better than it has
saved by the number of steps alone, not by its choice of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from raysweep.contracts import Array, Batch
from raysweep.errors import NotApplicableError
from raysweep.job import registry
from raysweep.networks.plasticity.objective import NO_LABEL
from raysweep.networks.pnn.dynamic import infer
from raysweep.science.pnn.exit_curves import CONTROL, FIXED, ExitCurves, ExitPoint, exit_curves
from raysweep.science.pnn.subject import PnnSubject
from raysweep.science.statistics.finding import Comparison, Finding, Panel, Series, adjusted
from raysweep.science.statistics.resampling import Ints, paired
from raysweep.trial.measures.evaluation import Seeded

THRESHOLDS: dict[str, tuple[str, Sequence[float]]] = {
    "delta_norm": ("threshold", (0.05, 0.1, 0.2, 0.3)),
    "patience": ("patience", (1, 2)),
    "kl": ("divergence", (0.01, 0.03, 0.1, 0.3)),
    "max_probability": ("probability", (0.3, 0.5, 0.7, 0.9)),
    "learned": ("quantile", (0.3, 0.5, 0.7, 0.9)),
}
"""Exit -> its option, and the values to try: fewer than those of `exit_curves`, to take fewer passes."""
RUNS = 1
"""Timings of each setting."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("halting",)

    def passes(self, subject: PnnSubject) -> int:
        depths = 2 * subject.network.config.num_steps
        return depths * (1 + RUNS) + sum(len(values) for _, values in THRESHOLDS.values()) * (2 + RUNS)

    def __call__(self, subject: PnnSubject) -> Finding:
        config = subject.network.config
        # `infer` lets tokens leave between steps of one shared module; separate layers have no such steps.
        if not config.shared:
            raise NotApplicableError(f"tokens leave between steps of one module; this trunk is {config.trunk!r}.")
        # Thresholds are chosen on one half and tested on the other: the best of several on one half is biased there.
        halves = halves_of(subject.batches)
        curves = exit_curves(subject.network, halves, thresholds=THRESHOLDS, runs=RUNS)
        comparisons = _compared(curves, subject, halves[1])
        return Finding(
            experiment="exits",
            measured="Accuracy of masked tokens that leave by a rule minus that of tokens that leave by chance after "
            "as many steps on average; thresholds are chosen on the sequences of even number, all else is measured on "
            "the others.",
            verdict=_verdict(curves, comparisons),
            comparisons=comparisons,
            figures=curves.to_dict(),
            panels=[_panel(curves, "flops_per_token", "FLOPs per token"), _panel(curves, "mean_steps", "mean steps")],
        )


def halves_of(batches: Sequence[Batch]) -> tuple[list[Seeded], list[Seeded]]:
    """Return the sequences of even and those of odd number, each with its number as its seed."""
    # Alternating, not first and second: neighbouring sequences stem from one part of the text, so that both halves hold
    # the whole of it. Numbers count over all batches, which may be of odd length.
    halves: tuple[list[Seeded], list[Seeded]] = ([], [])
    start = 0
    for batch in batches:
        end = start + len(batch.labels)
        for first in range(min(2, len(batch.labels))):
            halves[(start + first) % 2].append((_rows(batch, first), range(start + first, end, 2)))
        start = end
    return halves


def _rows(batch: Batch, first: int) -> Batch:
    """Return every second sequence of a batch."""
    # Flat positions of labels change with the rows, so that `labelled` is computed anew.
    rows = slice(first, None, 2)
    labels = batch.labels[rows]
    mask = None if batch.attention_mask is None else batch.attention_mask[rows]
    labelled = (labels.flatten() != NO_LABEL).nonzero().flatten()
    return replace(batch, inputs=batch.inputs[rows], labels=labels, labelled=labelled, attention_mask=mask)


def _compared(curves: ExitCurves, subject: PnnSubject, half: Sequence[Seeded]) -> list[Comparison]:
    """Test each rule, at the threshold that saves most, against chance."""
    generator, found = subject.generator("exits"), []
    for point in _chosen(curves):
        # The same tokens under the rule and by chance: the difference is paired.
        own, sequences = _hits(subject.network, half, point.exit, point.options, point.steps)
        mean = {"mean_steps": point.searched["mean_steps"]}
        chance, _ = _hits(subject.network, half, CONTROL, mean, point.steps)
        found.append(paired(f"{point.exit} - chance", own - chance, sequences, generator))
    return adjusted(found)


def _chosen(curves: ExitCurves) -> list[ExitPoint]:
    """Return the setting of each rule that its saving is that of."""
    # A saving names its setting by options and steps; fixed depths have nothing to be compared with chance.
    kept = [(saving.exit, saving.chosen) for saving in curves.savings if saving.exit != FIXED]
    return [point for point in curves.points if (point.exit, {**point.options, "steps": point.steps}) in kept]


def _hits(network: Any, half: Sequence[Seeded], name: str, options: dict[str, float], steps: int) -> tuple[Array, Ints]:
    """Return whether each masked token is predicted right, 0 or 1, and the number of its sequence; (tokens,) each."""
    # An example's seed is its number, so that seeds name the sequences.
    rule = registry.build("exits", name, options)
    hits, sequences = [], []
    for batch, seeds in half:
        found = infer(network, batch, rule, steps=steps, seeds=seeds)
        right = found.logits.argmax(-1) == batch.labels[batch.labels != NO_LABEL]
        hits.append(right.double().cpu().numpy())
        rows = (batch.labels != NO_LABEL).nonzero()[:, 0].cpu()
        sequences.append(torch.tensor(list(seeds))[rows].numpy())
    return np.concatenate(hits), np.concatenate(sequences)


def _verdict(curves: ExitCurves, comparisons: Sequence[Comparison]) -> str:
    """Say what each exit saves, and whether it is right more often than chance after as many steps."""
    by_name = {one.name.partition(" - ")[0]: one for one in comparisons}
    said = []
    for saving in curves.savings:
        saved = f"{saving.exit} {saving.flops:.0%} of FLOPs ({100 * saving.accuracy:+.2f} points)"
        one = by_name.get(saving.exit)
        better = "" if one is None else ", better than chance" if one.above else ", not found better than chance"
        said.append(saved + better)
    return f"Saved against {curves.trained_steps} steps: {'; '.join(said)}."


def _panel(curves: ExitCurves, cost: str, label: str) -> Panel:
    """Return a panel of accuracy against a cost, a line for each exit and one for chance."""
    series = []
    for name in dict.fromkeys(point.exit for point in curves.points):
        measured = [point.reported for point in curves.points if point.exit == name]
        series.append(_line("fixed depth" if name == FIXED else name, measured, cost))
    series.append(_line("by chance", [point.control for point in curves.points if point.control], cost))
    return Panel(title="accuracy, by how tokens leave", kind="lines", x_label=label, y_label="accuracy", series=series)


def _line(name: str, measured: Sequence[dict[str, float]], cost: str) -> Series:
    """Return the points of one exit as a line, in the order of their cost."""
    ordered = sorted(measured, key=lambda numbers: numbers[cost])
    return Series(name=name, x=[n[cost] for n in ordered], y=[n["accuracy"] for n in ordered])
