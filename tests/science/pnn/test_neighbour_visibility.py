"""One neighbour at a time, against rows changed by hand; verdicts follow from what is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.subjects import FACTS, LENGTH, tiny_pnn, tiny_subject

from raysweep.science.pnn.analyses.neighbour_visibility import DECAY, Analysis, choose, conclude, slopes
from raysweep.science.pnn.neighbours import NeighbourEffects, neighbour_effects

MASK = FACTS.mask_token


def test_effects_are_those_of_rows_changed_by_hand() -> None:
    subject = tiny_subject(sequences=19)
    targets = np.arange(38)
    assert MASK is not None
    found = neighbour_effects(subject.network, subject.batches, MASK, targets, [-5, -1, 1, 2])
    places = [(batch, flat) for batch in subject.batches for flat in torch.nonzero(batch.labels.flatten() != -100)]
    expected = []
    for target in targets:
        batch, flat = places[target]
        row, column = divmod(int(flat), LENGTH)
        for distance in (-5, -1, 1, 2):
            if 0 <= column + distance < LENGTH:
                hidden = batch.labels[row, column + distance] != -100
                effect = log_p(subject, batch, row, column, column + distance, True) - log_p(
                    subject, batch, row, column, column + distance, False
                )
                expected.append((int(target), distance, bool(hidden), effect))
    got = zip(found.targets.tolist(), found.distances.tolist(), found.shown.tolist(), found.effect, strict=True)
    for one, other in zip(sorted(got), sorted(expected), strict=True):
        assert one == (*other[:3], pytest.approx(other[3]))
    assert 0 < found.shown.sum() < len(found.shown)


def log_p(subject: Any, batch: Any, row: int, column: int, neighbour: int, seen: bool) -> float:
    tokens, label = batch.inputs[row].clone(), batch.labels[row, neighbour]
    tokens[neighbour] = MASK if not seen else label if label != -100 else tokens[neighbour]
    with torch.no_grad():
        logs = subject.network(tokens[None]).logits[0, column].log_softmax(-1)
    return float(logs[batch.labels[row, column]])


def test_without_attention_no_neighbour_matters() -> None:
    network = tiny_pnn()
    with torch.no_grad():
        network.pnn.refiner.attention.o_proj.weight.zero_()
    finding = Analysis()(tiny_subject(network, sequences=20))
    assert "not found to matter at any distance; no dependence" in finding.verdict
    assert all(one.effect == pytest.approx(0, abs=1e-12) for one in finding.comparisons)


def planted(near: float, far: float, noise: float = 0.05) -> Any:
    """Return the finding of effects at distances 1 and 2 of one size, at 4 and 8 of another, on 20 sequences."""
    generator = np.random.default_rng(0)
    targets, distances = np.repeat(np.arange(40), 8), np.tile([-8, -4, -2, -1, 1, 2, 4, 8], 40)
    worth = np.where(np.abs(distances) <= 2, near, far)
    effects = NeighbourEffects(
        effect=worth + noise * generator.normal(size=320), targets=targets, distances=distances,
        shown=np.arange(320) % 3 == 0,
    )  # fmt: skip
    return conclude(effects, effects, np.arange(40) // 2, generator)


@pytest.mark.parametrize(
    ("near", "far", "verdict"),
    [
        (0.4, 0.0, "helps at distance 1, 2; its worth falls with the distance."),
        (0.0, 0.4, "helps at distance 4, 8; its worth rises with the distance."),
        (-0.4, 0.0, "hurts at distance 1, 2; its worth rises with the distance."),
        (0.3, -0.3, "helps at distance 1, 2 and hurts at distance 4, 8; its worth falls with the distance."),
        (0.3, 0.3, "helps at distance 1, 2, 4, 8; no dependence on the distance is found."),
        (0.0, 0.0, "is not found to matter at any distance; no dependence on the distance is found."),
    ],
)
def test_the_verdict_follows_from_the_effects(near: float, far: float, verdict: str) -> None:
    assert planted(near, far).verdict == f"A neighbour in sight {verdict}"


def test_the_slope_is_within_each_target() -> None:
    effects = NeighbourEffects(
        effect=np.array([3.0, 2.0, 1.0, 5.0, 9.0, 9.0]), targets=np.array([0, 0, 0, 4, 7, 7]),
        distances=np.array([1, -2, 4, 1, 3, -3]), shown=np.zeros(6, bool),
    )  # fmt: skip
    values, sequences = slopes(effects, np.arange(8) + 10)
    assert values == pytest.approx([-1.0]) and sequences.tolist() == [10]


def test_showing_and_hiding_are_tested_apart_too() -> None:
    names = {one.name for one in planted(0.4, 0.0).comparisons}
    assert {"distance 1", "distance 1, shown", "distance 1, hidden", DECAY} <= names


def test_targets_are_few_of_each_sequence_and_follow_from_the_seed() -> None:
    sequences = np.repeat([0, 1, 5], [4, 1, 3])
    chosen = choose(sequences, np.random.default_rng(3))
    assert sequences[chosen].tolist() == [0, 0, 1, 5, 5]
    assert chosen.tolist() == choose(sequences, np.random.default_rng(3)).tolist()
