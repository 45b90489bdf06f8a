"""Measure what one visible neighbour is worth for the prediction of a masked token, by its distance.

The same token is predicted with the neighbour in sight and with it masked, all else equal: tokens with easy neighbours
differ from others in more than the neighbour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from raysweep.contracts import Array
from raysweep.science.pnn.neighbours import NeighbourEffects, neighbour_effects
from raysweep.science.pnn.subject import PnnSubject
from raysweep.science.pnn.trace import labelled_places
from raysweep.science.statistics.finding import Comparison, Finding, Panel, Series, adjusted, with_intervals
from raysweep.science.statistics.resampling import FEWEST_SEQUENCES, Ints, interval, paired

DISTANCES = (1, 2, 4, 8, 16, 32)
TARGETS = 2
"""Masked tokens of each sequence whose neighbours are changed; each takes a pass for every neighbour."""
MEASURED = (
    "log p of a masked token with one neighbour in sight minus that with it hidden: the same token, all else the same, "
    "by distance to either side. Null: no difference; beside it the untrained network."
)
DECAY = "change with each doubling of the distance"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ("cross_token_interference",)

    def passes(self, subject: PnnSubject) -> int:
        # In both networks, for each target, a row without a change and one for each neighbour on either side.
        return 2 * TARGETS * (1 + 2 * len(_distances(subject)))

    def __call__(self, subject: PnnSubject) -> Finding:
        assert subject.facts.mask_token is not None
        sequences = labelled_places(subject.batches)[1]
        targets = choose(sequences, subject.generator("neighbour_visibility targets"))
        signed = [sign * distance for distance in _distances(subject) for sign in (-1, 1)]
        # Both networks with the same targets and neighbours.
        effects, null = (
            neighbour_effects(network, subject.batches, subject.facts.mask_token, targets, signed)
            for network in (subject.network, subject.untrained)
        )
        return conclude(effects, null, sequences, subject.generator("neighbour_visibility"))


def choose(sequences: Ints, generator: np.random.Generator) -> Ints:
    """Return the numbers of at most TARGETS masked tokens of each sequence, drawn at random, sorted.

    Args:
        sequences: (tokens,), of each masked token.
    """
    # The first few of each sequence in a random order are a random draw without replacement.
    order = generator.permutation(len(sequences))
    drawn = [order[sequences[order] == sequence][:TARGETS] for sequence in np.unique(sequences)]
    return np.sort(np.concatenate(drawn))


def conclude(
    effects: NeighbourEffects, null: NeighbourEffects, sequences: Ints, generator: np.random.Generator
) -> Finding:
    """Return the finding that follows from the effects of neighbours.

    Args:
        null: effects in the untrained network.
        sequences: (tokens,), of each masked token.
    """
    # At far distances fewer targets have neighbours. With too few sequences no effect could be found, and a test that
    # cannot find anything would only raise the q-values of the others.
    tested = {**_by_distance(effects, sequences), DECAY: slopes(effects, sequences)}
    comparisons = adjusted([
        paired(name, values, of, generator)
        for name, (values, of) in tested.items()
        if len(np.unique(of)) >= FEWEST_SEQUENCES
    ])  # fmt: skip
    return Finding(
        experiment="neighbour_visibility",
        measured=MEASURED,
        verdict=verdict(comparisons),
        comparisons=comparisons,
        figures={"pairs": len(effects.effect), "targets": len(np.unique(effects.targets)),
                 "trained": _sides(effects), "untrained": _sides(null)},
        panels=[_panel(effects, null, sequences, generator)],
    )  # fmt: skip


def slopes(effects: NeighbourEffects, sequences: Ints) -> tuple[Array, Ints]:
    """Return the slope of the effect over log2 of the distance and the sequence of each target, (targets,) each.

    Targets with neighbours at one distance alone have no slope and are left out.
    """
    # A slope for each target, not one over all pairs: far neighbours exist only for some targets, which may differ.
    found, of = [], []
    for target in np.unique(effects.targets):
        mine = effects.targets == target
        distance = np.log2(np.abs(effects.distances[mine]))
        if np.ptp(distance) > 0:
            found.append(np.polyfit(distance, effects.effect[mine], 1)[0])
            of.append(sequences[target])
    return np.array(found), np.array(of)


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Say at which distances a visible neighbour helps or hurts, and whether that depends on the distance."""
    # Distances with too few sequences were not tested.
    found = {comparison.name: comparison for comparison in comparisons}
    at = {distance: found[f"distance {distance}"] for distance in DISTANCES if f"distance {distance}" in found}
    helps = [str(distance) for distance, comparison in at.items() if comparison.above]
    hurts = [str(distance) for distance, comparison in at.items() if comparison.below]
    words = [f"{word} at distance {', '.join(where)}" for word, where in (("helps", helps), ("hurts", hurts)) if where]
    said = " and ".join(words) or "is not found to matter at any distance"
    decay = found.get(DECAY)
    if decay is None or not decay.found:
        return f"A neighbour in sight {said}; no dependence on the distance is found."
    return f"A neighbour in sight {said}; its worth {'falls' if decay.below else 'rises'} with the distance."


def _distances(subject: PnnSubject) -> list[int]:
    """Return the distances that fit into a sequence."""
    length = subject.batches[0].labels.shape[1]
    return [distance for distance in DISTANCES if distance < length]


def _by_distance(effects: NeighbourEffects, sequences: Ints) -> dict[str, tuple[Array, Ints]]:
    """Return the effects and their sequences at each distance: of all neighbours, of shown and of masked ones."""
    found = {}
    far = np.abs(effects.distances)
    for distance in np.unique(far):
        here = far == distance
        # Showing a masked neighbour and masking a visible one are two interventions; together they are one effect.
        kinds = {"": here, ", shown": here & effects.shown, ", hidden": here & ~effects.shown}
        for kind, chosen in kinds.items():
            found[f"distance {distance}{kind}"] = effects.effect[chosen], sequences[effects.targets[chosen]]
    return found


def _sides(effects: NeighbourEffects) -> dict[str, Any]:
    """Return the mean effect and the number of pairs at each signed distance."""
    return {
        str(distance): {"mean": float(effects.effect[effects.distances == distance].mean()),
                        "pairs": int((effects.distances == distance).sum())}
        for distance in np.unique(effects.distances)
    }  # fmt: skip


def _panel(effects: NeighbourEffects, null: NeighbourEffects, sequences: Ints, generator: np.random.Generator) -> Panel:
    both: Mapping[str, NeighbourEffects] = {"trained": effects, "untrained": null}
    return Panel(
        title="Worth of one neighbour in sight", kind="lines", x_label="distance", y_label="gain of log p (nats)",
        level=0.0,
        series=[_line(name, one, sequences, generator) for name, one in both.items()],
    )  # fmt: skip


def _line(name: str, effects: NeighbourEffects, sequences: Ints, generator: np.random.Generator) -> Series:
    # Left and right together; `figures` hold both sides.
    far = np.abs(effects.distances)
    distances = np.unique(far)
    means = [
        interval(effects.effect[far == distance], sequences[effects.targets[far == distance]], generator)
        for distance in distances
    ]
    return with_intervals(name, distances.tolist(), means)
