"""Areas and calibration against scikit-learn and loops; saturated gates; verdicts follow from what is planted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from support.subjects import tiny_pnn, tiny_subject

from raysweep.errors import NotApplicableError
from raysweep.science.pnn.analyses.gate_entropy import Analysis, binary_entropy, conclude, gate_entropies
from raysweep.science.pnn.interventions import observed
from raysweep.science.pnn.trace import Predictions
from raysweep.science.statistics.discrimination import (
    area_under_risk_coverage,
    areas_under_roc,
    bootstrapped_areas,
    calibration_error,
    fitted_confidence,
    from_bootstrap,
)

TOKENS = 600
SEQUENCES = np.arange(TOKENS) // 10


def test_entropy_is_exactly_0_where_a_gate_is_saturated() -> None:
    gates = torch.tensor([0.0, 1.0, torch.sigmoid(torch.tensor(200.0)), 0.5, 0.2])
    found = binary_entropy(gates)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3:].tolist() == pytest.approx([np.log(2), stats.entropy([0.2, 0.8])], rel=1e-6)


def test_entropies_are_those_of_each_masked_token_at_each_step() -> None:
    subject = tiny_subject(sequences=19)
    found, at = gate_entropies(subject.network, subject.batches), 0
    for batch in subject.batches:
        gates: dict[int, torch.Tensor] = {}
        with torch.no_grad(), observed(subject.network, "gate", gates.__setitem__):
            subject.network.pnn.states(batch.inputs)
        for row, column in torch.nonzero(batch.labels != -100).tolist():
            for step in range(3):
                pairs = np.stack([gates[step][row, column], 1 - gates[step][row, column]])
                assert found[step, at] == pytest.approx(stats.entropy(pairs).mean())
            at += 1
    assert found.shape == (3, at)


def test_areas_are_scikit_learns_ties_included() -> None:
    generator = np.random.default_rng(0)
    wrong = (generator.random(80) < 0.3).astype(float)
    scores = np.stack([generator.normal(size=80), generator.integers(4, size=80), wrong, -wrong, np.ones(80)])
    expected = [roc_auc_score(wrong, score) for score in scores]
    assert areas_under_roc(wrong, scores).tolist() == pytest.approx(expected)
    drawn = bootstrapped_areas(wrong, {"one": scores[0], "other": scores[2]}, np.arange(80) // 4, generator)
    assert drawn["one"][0] == pytest.approx(expected[0]) and (drawn["other"] == 1).all()
    interval, p_value = from_bootstrap(drawn["other"], 0.5)
    assert interval.low == interval.high == 1 and p_value < 0.01


def test_risk_is_averaged_over_coverage_and_over_the_order_of_equal_scores() -> None:
    assert area_under_risk_coverage(np.array([0.0, 1, 0, 1]), np.array([1.0, 4, 2, 3])) == pytest.approx(
        (0.5 + 1 / 3) / 4
    )
    wrong, score = np.array([1.0, 0, 0, 1, 0]), np.array([0.0, 0, 0, 1, 1])
    generator, drawn = np.random.default_rng(0), []
    for _ in range(4000):
        order = np.lexsort([generator.random(5), score])
        drawn.append((np.cumsum(wrong[order]) / np.arange(1, 6)).mean())
    assert area_under_risk_coverage(wrong, score) == pytest.approx(np.mean(drawn), abs=0.01)


def test_calibration_error_is_the_mean_gap_by_bin() -> None:
    right, confidence = np.array([1.0, 0, 1, 1]), np.array([0.61, 0.62, 1.0, 0.97])
    assert calibration_error(right, confidence) == pytest.approx((2 * abs(0.5 - 0.615) + 2 * abs(1 - 0.985)) / 4)
    generator = np.random.default_rng(0)
    told = generator.random(20_000)
    assert calibration_error((generator.random(20_000) < told).astype(float), told) < 0.02


def test_a_fitted_confidence_never_saw_its_own_sequence() -> None:
    """A feature that identifies each sequence predicts its tokens, and nothing of other sequences."""
    right = (np.random.default_rng(1).random(60) < 0.5).astype(float)[SEQUENCES]
    found = fitted_confidence(np.eye(60)[SEQUENCES], right, SEQUENCES)
    assert roc_auc_score(right, found) < 0.6


def planted(of_gates: float, of_confidence: float, *, same: bool = False) -> Any:
    """Return the finding of predictions, half of them wrong, that gates and confidences separate by some deviations."""
    generator = np.random.default_rng(2)
    right = (generator.random(TOKENS) < 0.5).astype(float)
    told = of_confidence * (right - 0.5) + generator.normal(size=TOKENS)
    noise = generator.normal(size=(3, TOKENS))
    hidden = -told + 0.3 * noise if same else of_gates * (0.5 - right) + noise
    confidence = 1 / (1 + np.exp(-told))
    of_steps = np.stack([confidence] * 4)
    predictions = Predictions(
        loss=of_steps, predicted=np.stack([right.astype(np.int64)] * 4), entropy=1 - of_steps, margin=of_steps,
        confidence=of_steps, divergence=of_steps, labels=np.ones(TOKENS, np.int64), sequences=SEQUENCES,
        positions=np.arange(TOKENS) % 10,
    )  # fmt: skip
    return conclude(0.4 + 0.02 * hidden, predictions, generator)


@pytest.mark.parametrize(
    ("of_gates", "of_confidence", "same", "said"),
    [
        (0.0, 1.0, False, ["is not found to separate", "it separates them worse than", "is not found to add"]),
        (
            1.0,
            1.0,
            False,
            ["is higher where the prediction is wrong", "it separates them better than", "and adds to it"],
        ),
        (-1.0, 1.0, False, ["is lower where the prediction is wrong", "and adds to it"]),
        (0.0, 1.0, True, ["is higher where the prediction is wrong", "is not found to add"]),
    ],
)
def test_the_verdict_follows_from_what_gates_tell(
    of_gates: float, of_confidence: float, same: bool, said: list[str]
) -> None:
    verdict = planted(of_gates, of_confidence, same=same).verdict
    assert all(words in verdict for words in said), verdict


def test_effects_are_areas_by_scikit_learn_on_a_network() -> None:
    network = tiny_pnn()
    subject = tiny_subject(network, sequences=40)
    found = subject.predictions()
    # Labels are replaced so that about half of the predictions are right.
    kept = np.random.default_rng(0).random(len(found.labels)) < 0.5
    labels = np.where(kept, found.predicted[-1], (found.predicted[-1] + 1) % 39)
    batches, at = [], 0
    for batch in subject.batches:
        assert batch.labelled is not None
        changed = batch.labels.clone()
        changed.view(-1)[batch.labelled] = torch.from_numpy(labels[at : at + len(batch.labelled)])
        at += len(batch.labelled)
        batches.append(dataclasses.replace(batch, labels=changed))
    finding = Analysis()(dataclasses.replace(subject, batches=batches))
    effects = {one.name: one.effect for one in finding.comparisons}
    entropies = gate_entropies(network, batches)
    for step in range(3):
        area = roc_auc_score(~kept, entropies[step])
        assert effects[f"gate entropy, step {step + 1}: area - 0.5"] == pytest.approx(area - 0.5)
        rival = roc_auc_score(~kept, -found.confidence[-1])
        assert effects[f"gate entropy, step {step + 1}: area - that of confidence"] == pytest.approx(area - rival)
    assert finding.figures["accuracy"] == kept.mean()


def test_a_network_that_is_hardly_ever_right_cannot_be_judged() -> None:
    with pytest.raises(NotApplicableError, match=r"right, and 10 of each are needed"):
        Analysis()(tiny_subject())
