"""Measure how many dimensions states fill and how far they leave the embedding, beside untrained networks.

Published as "brain modelling", by the spread of the mean state over dimensions. That grows with any residual state, so
states are scaled to one size here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from raysweep.contracts import Array
from raysweep.science.pnn.activity import states_by_sequence
from raysweep.science.pnn.subject import TWINS, PnnSubject
from raysweep.science.statistics.finding import Comparison, Finding, Panel, adjusted, by_step, with_range
from raysweep.science.statistics.resampling import beyond_draws, intervals
from raysweep.science.statistics.similarity import alignments, breadths

NO_BRAIN = "No recording of a brain was compared with anything here."


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("brain_modelling", "brain_modeling")

    def passes(self, subject: PnnSubject) -> int:
        return 1 + TWINS

    def __call__(self, subject: PnnSubject) -> Finding:
        found = _metrics(states_by_sequence(subject.network, subject.batches))
        twins = [_metrics(states_by_sequence(twin, subject.batches)) for twin in subject.twins()]
        comparisons = _compared(found, twins)
        return Finding(
            experiment="representation",
            measured="Participation ratio of the tokens' states, scaled to a root mean square of 1, and their CKA with "
            f"the embedding, each minus that of {TWINS} untrained networks on the same sequences. {NO_BRAIN}",
            verdict=f"{_verdict(comparisons)} {NO_BRAIN}",
            comparisons=comparisons,
            figures={"trained": _figures(found), "untrained": [_figures(twin) for twin in twins]},
            panels=[_panel(name, found, twins, subject) for name in found],
        )


def _metrics(sequences: list[torch.Tensor]) -> dict[str, Array]:
    """Return the breadth, (sequences, steps + 1), and the similarity to the embedding, (sequences, steps)."""
    # One value for each sequence: CKA and breadth are defined for a set of tokens, not for a single one.
    return {
        "breadth": np.stack([breadths(states) for states in sequences]),
        "similarity to the embedding": np.stack([alignments(states)[0, 1:] for states in sequences]),
    }


def _compared(found: dict[str, Array], twins: list[dict[str, Array]]) -> list[Comparison]:
    """Test the mean of each metric at each step as one more draw from those of untrained networks."""
    # Networks are the units: ten untrained ones give ten means, of which the trained one would be an eleventh.
    return adjusted([
        beyond_draws(f"{name} at step {step} - untrained", float(mean), [twin[name].mean(0)[at] for twin in twins])
        for name, values in found.items()
        for at, mean in enumerate(values.mean(0))
        for step in [at + _first(name)]
    ])  # fmt: skip


def _first(name: str) -> int:
    """Return the step of a metric's first column: the similarity of the embedding to itself is not measured."""
    return 0 if name == "breadth" else 1


def _verdict(comparisons: list[Comparison]) -> str:
    """Say at which steps each metric is larger or smaller than in untrained networks."""
    said = []
    for name in ("breadth", "similarity to the embedding"):
        for word, sign in (("larger", 1), ("smaller", -1)):
            # Names end with "at step <number> - untrained".
            steps = [
                one.name.split()[-3] for one in comparisons
                if one.name.startswith(name) and one.found and sign * one.effect > 0
            ]  # fmt: skip
            if steps:
                said.append(f"{name} is {word} than untrained at step {', '.join(steps)}")
    return f"{'; '.join(said) or 'no difference from untrained networks was found'}.".capitalize()


def _figures(found: dict[str, Array]) -> dict[str, Any]:
    # The published experiment asked at which step states are narrowest; here it is a share of sequences.
    narrowest = found["breadth"].argmin(1)
    steps = found["breadth"].shape[1]
    return {name: values.mean(0).tolist() for name, values in found.items()} | {
        "share_of_sequences_narrowest_at_step": (np.bincount(narrowest, minlength=steps) / len(narrowest)).tolist()
    }


def _panel(name: str, found: dict[str, Array], twins: list[dict[str, Array]], subject: PnnSubject) -> Panel:
    generator = subject.generator(f"representation {name}")
    # The band of the trained network is over sequences, that of the untrained ones over networks.
    untrained = np.array([twin[name].mean(0) for twin in twins])
    return Panel(
        title=name, kind="lines", x_label="step", y_label=name,
        series=[
            by_step("trained", intervals(found[name], np.arange(len(found[name])), generator), first=_first(name)),
            with_range("untrained, all", list(range(_first(name), _first(name) + untrained.shape[1])), untrained),
        ],
    )  # fmt: skip
