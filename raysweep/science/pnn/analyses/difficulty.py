"""Measure whether harder tokens move their states further, at equal word frequency and position.

Difficulty comes from counts of neighbours, not from the network (see `reference`). Frequency and position are
covariates, and each sequence has a level of its own, so that the slope is not due to any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from raysweep.contracts import Array
from raysweep.science.pnn.activity import activity
from raysweep.science.pnn.reference import matched_classes, members_of
from raysweep.science.pnn.subject import TWINS, PnnSubject
from raysweep.science.statistics.finding import Comparison, Finding, Panel, Series, adjusted, with_intervals
from raysweep.science.statistics.regression import partial_slope, partialled, slope_of
from raysweep.science.statistics.resampling import Ints, beyond_draws

ALL_STEPS = "all steps"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("token_difficulty",)

    def passes(self, subject: PnnSubject) -> int:
        return 2 + TWINS

    def __call__(self, subject: PnnSubject) -> Finding:
        found = subject.predictions()
        difficulty = subject.difficulty()
        frequency = subject.frequency[found.labels]
        # The square of the position lets both ends of a sequence differ from its middle.
        covariates = np.stack([np.log1p(frequency), found.positions, found.positions**2.0], 1)
        # The same regression is fitted to the network and to each untrained one.
        energies = _energies(subject.network, subject)
        twins = [_energies(twin, subject) for twin in subject.twins()]
        comparisons = _compared(energies, twins, _Model(difficulty, covariates, found.sequences), subject)
        classes = matched_classes(difficulty, frequency)
        return Finding(
            experiment="difficulty",
            measured="Change of the log of |delta|^2 of a masked token with each nat of difficulty by counts of its "
            "neighbours, at equal word frequency and position within its sequence, against no slope and against that "
            f"of {TWINS} untrained networks.",
            verdict=_verdict(comparisons),
            comparisons=comparisons,
            figures={
                label: energies[:, members].mean(1).tolist() for label, members in members_of(classes).items()
            },
            panels=_panels(energies, classes, comparisons),
        )  # fmt: skip


@dataclass(frozen=True)
class _Model:
    """The regressors of the energies."""

    difficulty: Array
    """(tokens,), nats."""
    covariates: Array
    """(tokens, covariates)."""
    sequences: Ints
    """(tokens,), sorted."""


def _energies(network: Any, subject: PnnSubject) -> Array:
    """Return the log of |delta|^2 of each masked token at each step and over all steps, (steps + 1, tokens)."""
    found = activity(network, subject.batches)
    # Logs, so that a slope is a relative change and a few large updates do not decide it. The smallest normal number
    # keeps the log of an update of exactly 0 finite.
    squares = found.update_norm[:, found.masked] ** 2
    return np.log(np.concatenate([squares, squares.sum(0, keepdims=True)]) + np.finfo(float).tiny)


def _compared(energies: Array, twins: list[Array], model: _Model, subject: PnnSubject) -> list[Comparison]:
    """Test the slope at each step and over all steps, against none and against those of untrained networks."""
    generator = subject.generator("difficulty")
    tested = []
    for at, values in enumerate(energies):
        when = ALL_STEPS if at == len(energies) - 1 else f"step {at + 1}"
        found = partial_slope(when, values, model.difficulty, model.covariates, model.sequences, generator)
        # Of untrained networks the slope alone is needed: their permutations would take most of the time.
        null = [
            slope_of(*partialled(twin[at], model.difficulty, model.covariates, model.sequences)) for twin in twins
        ]  # fmt: skip
        tested += [found, beyond_draws(f"{when}, minus untrained", found.effect, null)]
    return adjusted(tested)


def _verdict(comparisons: list[Comparison]) -> str:
    """Say whether harder tokens move further, by the slope over all steps.

    It must differ from 0 and, in the same direction, from the slopes of untrained networks: what those do, too, is not
    an effect of training.
    """
    by_name = {one.name: one for one in comparisons}
    slope, beyond = by_name[ALL_STEPS], by_name[f"{ALL_STEPS}, minus untrained"]
    said = f"{slope.effect:+.4f} in the log of |delta|^2 a nat, {beyond.effect:+.4f} beyond untrained networks"
    if slope.found and beyond.found and slope.effect * beyond.effect > 0:
        return f"Harder tokens move {'further' if slope.effect > 0 else 'less far'}: {said}."
    return f"Not found that harder tokens move further or less far because of training: {said}."


def _panels(energies: Array, classes: Ints, comparisons: list[Comparison]) -> list[Panel]:
    steps = list(range(1, len(energies)))
    # Comparisons come in pairs, slope and difference to untrained networks; the last pair is over all steps.
    slopes = comparisons[0:-2:2]
    return [
        Panel(
            title="energy of updates", kind="lines", x_label="step", y_label="mean log |delta|^2",
            series=[
                Series(name=label, x=steps, y=energies[:-1, members].mean(1).tolist())
                for label, members in members_of(classes).items()
            ],
        ),
        Panel(
            title="slope by difficulty", kind="lines", x_label="step", y_label="log |delta|^2 a nat", level=0.0,
            series=[with_intervals("slope", steps, [slope.interval for slope in slopes])],
        ),
    ]  # fmt: skip
