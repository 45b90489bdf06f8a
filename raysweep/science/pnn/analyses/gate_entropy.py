"""Measure whether the entropy of the gates separates wrong predictions from right ones, beside the output's confidence.

A gate is not a confidence: that its entropy means one must be shown, and that it adds to the largest probability, which
comes for free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from raysweep.contracts import Array, Batch
from raysweep.errors import NotApplicableError
from raysweep.science.pnn.interventions import part_outputs
from raysweep.science.pnn.subject import PnnSubject
from raysweep.science.pnn.trace import Predictions
from raysweep.science.statistics.discrimination import (
    area_under_risk_coverage,
    bootstrapped_areas,
    calibration_error,
    fitted_confidence,
    from_bootstrap,
    log_losses,
)
from raysweep.science.statistics.finding import Comparison, Finding, Panel, Series, adjusted, with_intervals
from raysweep.science.statistics.resampling import Ints, paired

FEWEST = 10
"""Fewest right and fewest wrong predictions: with fewer, a fold of the regression may hold none of them."""
MEASURED = (
    "Area under the ROC curve of wrong against right predictions at the last step: the gates' binary entropy, beside "
    "the largest probability, the margin and the output's entropy. Null: 0.5, and the area of the largest probability."
)
CONFIDENCE, MARGIN, OUTPUT = "1 - largest probability", "negative margin", "output entropy"
OF_OUTPUT = (CONFIDENCE, MARGIN, OUTPUT)
"""Scores that need no gate."""
ADDED = "log-loss saved by gate entropies beside the largest probability"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    aliases: ClassVar[tuple[str, ...]] = ()

    def passes(self, subject: PnnSubject) -> int:
        return 2

    def __call__(self, subject: PnnSubject) -> Finding:
        # Both passes see the same masked tokens in the same order, so entropies and predictions belong together.
        subject.require_gate()
        predictions = subject.predictions()
        entropies = gate_entropies(subject.network, subject.batches)
        return conclude(entropies, predictions, subject.generator("gate_entropy"))


def binary_entropy(gates: torch.Tensor) -> torch.Tensor:
    """Return the entropy of gates as probabilities, nats; exactly 0 where a gate is 0 or 1."""
    # The published code clamps to 1 - 1e-10, which is 1 in fp32: a saturated gate gives NaN there. entr is 0 at 0.
    gates = gates.double()
    return torch.special.entr(gates) + torch.special.entr(1 - gates)


@torch.no_grad()
def gate_entropies(network: Any, batches: Sequence[Batch]) -> Array:
    """Return the entropy of the gates of every masked token at each step, mean over dimensions, (steps, tokens)."""
    by_batch = [part_outputs(network, "gate", batch, partial(_mean_entropy, batch)) for batch in batches]
    return np.concatenate([torch.stack(steps).cpu().numpy() for steps in by_batch], axis=1)


def _mean_entropy(batch: Batch, gates: torch.Tensor) -> torch.Tensor:
    """Return the entropy of gates (batch, tokens, width) at the labelled tokens, mean over dimensions, (labelled,)."""
    return binary_entropy(gates.flatten(0, 1)[batch.labelled]).mean(-1)


def conclude(entropies: Array, predictions: Predictions, generator: np.random.Generator) -> Finding:
    """Return the finding that follows from gate entropies and from the predictions of the last step.

    Args:
        entropies: (steps, tokens), of masked tokens.

    Raises:
        NotApplicableError: fewer than FEWEST predictions are right, or wrong.
    """
    right, sequences = predictions.correct[-1], predictions.sequences
    _check_both(right)
    scores = _scores(entropies, predictions)
    drawn = bootstrapped_areas(1 - right, scores, sequences, generator)
    own = _confidences(entropies, predictions.confidence[-1], right, sequences)
    # Both regressions are fitted alike, so that the saving is due to the gate entropies and not to recalibration.
    saved = log_losses(right, own["fitted: largest probability"]) - log_losses(right, own["fitted: both"])
    of_gates = {name: areas for name, areas in drawn.items() if name not in OF_OUTPUT}
    comparisons = adjusted([
        *_against_chance(drawn, sequences),
        *_against_confidence(of_gates, drawn[CONFIDENCE], sequences),
        paired(ADDED, saved, sequences, generator),
    ])  # fmt: skip
    return Finding(
        experiment="gate_entropy",
        measured=MEASURED,
        verdict=verdict(comparisons),
        comparisons=comparisons,
        figures={
            "accuracy": float(right.mean()),
            "area_under_risk_coverage": {n: area_under_risk_coverage(1 - right, score) for n, score in scores.items()},
            "calibration_error": {name: calibration_error(right, confidence) for name, confidence in own.items()},
            "mean_entropy": {"right": entropies[:, right > 0].mean(1).tolist(),
                             "wrong": entropies[:, right == 0].mean(1).tolist()},
            "bootstrap_samples": len(drawn[CONFIDENCE]) - 1,
        },
        panels=[_areas_panel(drawn), _calibration_panel(own, right)],
    )  # fmt: skip


def _scores(entropies: Array, predictions: Predictions) -> dict[str, Array]:
    """Return all scores of the masked tokens, (tokens,) each; a larger one is to mean that the prediction is wrong."""
    return {
        **{f"gate entropy, step {step}": entropy for step, entropy in enumerate(entropies, 1)},
        # The verdict rests on the mean: the step to look at would otherwise be chosen by its result.
        "gate entropy, mean": entropies.mean(0),
        CONFIDENCE: 1 - predictions.confidence[-1],
        MARGIN: -predictions.margin[-1],
        OUTPUT: predictions.entropy[-1],
    }


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Say whether gate entropy, mean over steps, separates errors, and whether it adds to the largest probability."""
    found = {comparison.name: comparison for comparison in comparisons}
    chance, rival = found["gate entropy, mean: area - 0.5"], found["gate entropy, mean: area - that of confidence"]
    # The comparison is of the area minus 0.5, and the sentence gives the area itself.
    area = 0.5 + chance.effect
    if chance.above:
        said = f"Gate entropy is higher where the prediction is wrong (area {area:.2f})"
    elif chance.below:
        said = f"Gate entropy is lower where the prediction is wrong (area {area:.2f})"
    else:
        said = f"Gate entropy is not found to separate wrong predictions from right ones (area {area:.2f})"
    if rival.found:
        beside = f"it separates them {'better' if rival.above else 'worse'} than"
    else:
        beside = "it is not found to differ from"
    added = "adds to" if found[ADDED].above else "is not found to add to"
    return f"{said}; {beside} the largest probability ({area - rival.effect:.2f}), and {added} it."


def _check_both(right: Array) -> None:
    """Check that there are enough right and enough wrong predictions."""
    # The area under the curve needs both kinds, and each fold of the regression has to learn from both.
    fewer = int(min(right.sum(), len(right) - right.sum()))
    if fewer < FEWEST:
        raise NotApplicableError(
            f"it separates wrong predictions from right ones; of {len(right)} there are {int(right.sum())} right, and "
            f"{FEWEST} of each are needed. Give more --eval-tokens, or a network that has learnt."
        )


def _confidences(entropies: Array, confidence: Array, right: Array, sequences: Ints) -> dict[str, Array]:
    """Return confidences, (tokens,) each: the largest probability, and regressions on it and on gate entropies."""
    # A regression on the logit can keep a calibrated probability as it is; clamped, as the logit of 1 is infinite.
    clamped = np.clip(confidence, 1e-12, 1 - 1e-12)
    logit = np.log(clamped / (1 - clamped))[:, None]
    # Three regressions of the same form: "both" against "largest probability" shows what the entropies add.
    features = {"largest probability": logit, "gate entropies": entropies.T, "both": np.hstack([logit, entropies.T])}
    fitted = {f"fitted: {name}": fitted_confidence(made, right, sequences) for name, made in features.items()}
    return {"largest probability": confidence, **fitted}


def _against_chance(drawn: Mapping[str, Array], sequences: Ints) -> list[Comparison]:
    return [_comparison(f"{name}: area - 0.5", areas - 0.5, sequences) for name, areas in drawn.items()]


def _against_confidence(gates: Mapping[str, Array], confidence: Array, sequences: Ints) -> list[Comparison]:
    return [
        _comparison(f"{name}: area - that of confidence", areas - confidence, sequences)
        for name, areas in gates.items()
    ]


def _comparison(name: str, drawn: Array, sequences: Ints) -> Comparison:
    """Test whether a statistic is 0 by its bootstrap samples; `drawn` holds the statistic itself first."""
    # All areas come from the same samples, so a difference of two is tested sample by sample, as a paired one.
    interval, p_value = from_bootstrap(drawn, 0.0)
    return Comparison(
        name=name, effect=interval.mean, low=interval.low, high=interval.high, p_value=p_value,
        count=len(np.unique(sequences)),
    )  # fmt: skip


def _areas_panel(drawn: Mapping[str, Array]) -> Panel:
    # The p-value is not drawn, so the null given here does not matter.
    bars = [from_bootstrap(of_score, 0.5)[0] for of_score in drawn.values()]
    return Panel(
        title="Telling wrong from right", kind="bars", x_label="", y_label="area under the ROC curve", level=0.5,
        series=[with_intervals("area", list(drawn), bars)],
    )  # fmt: skip


def _calibration_panel(confidences: Mapping[str, Array], right: Array) -> Panel:
    return Panel(
        title="Expected calibration error", kind="bars", x_label="", y_label="share",
        series=[Series(name="error", x=list(confidences),
                       y=[calibration_error(right, confidence) for confidence in confidences.values()])],
    )  # fmt: skip
