"""Describe what a network predicts after each step at the masked positions of held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Array, Batch
from raysweep.science.pnn.interventions import step_states
from raysweep.science.statistics.resampling import Ints


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions after each step: arrays (steps + 1, tokens) unless said otherwise, tokens in batch order.

    Row 0 is predicted from the embedding.
    """

    loss: Array
    """Negative log-likelihood of the label, nats."""
    predicted: Ints
    """The token with the largest logit."""
    entropy: Array
    """Entropy of the predicted distribution, nats."""
    margin: Array
    """Log-probability of the first choice minus that of the second."""
    confidence: Array
    """Largest probability."""
    divergence: Array
    """KL(p_t || p_{t-1}), nats; row 0 is 0."""
    labels: Ints
    """(tokens,)."""
    sequences: Ints
    """(tokens,): number of the sequence that each token belongs to."""
    positions: Ints
    """(tokens,): position of the token within its sequence."""

    @property
    def correct(self) -> Array:
        """(steps + 1, tokens): 1 where the prediction is the label."""
        return (self.predicted == self.labels).astype(float)

    @property
    def steps(self) -> int:
        """T; row 0 is no step."""
        return len(self.loss) - 1


@torch.no_grad()
def predictions(network: Any, batches: Sequence[Batch], steps: int | None = None) -> Predictions:
    """Run a network on batches with labelled positions and describe what it predicts there after each step.

    Args:
        steps: T; the network's own unless given.
    """
    rows: dict[str, list[Any]] = {}
    for batch in batches:
        assert batch.labelled is not None
        targets = batch.labels.flatten()[batch.labelled]
        # Logits at labelled positions alone: those of all positions, a vocabulary each at every step, take far more
        # memory than the network.
        logits = [network.predict(state.flatten(0, 1)[batch.labelled]) for state in step_states(network, batch, steps)]
        for name, values in _described(logits, targets).items():
            rows.setdefault(name, []).append(values)
    labels, sequences, positions = labelled_places(batches)
    return Predictions(
        **{name: np.concatenate(parts, 1) for name, parts in rows.items()},
        labels=labels, sequences=sequences, positions=positions,
    )  # fmt: skip


def _described(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> dict[str, Any]:
    """Return the arrays of `Predictions` for one batch, from logits (tokens, vocabulary) after each step."""
    # fp64: margins and divergences are differences of nearly equal numbers.
    logs = [step.double().log_softmax(-1) for step in logits]
    # Two largest: the first is the prediction, their difference the margin.
    firsts = [step.topk(2, -1) for step in logs]
    measured = {
        "loss": [-step.gather(-1, labels[:, None])[:, 0] for step in logs],
        "predicted": [first.indices[:, 0] for first in firsts],
        "entropy": [-(step.exp() * step).sum(-1) for step in logs],
        "margin": [first.values[:, 0] - first.values[:, 1] for first in firsts],
        "confidence": [first.values[:, 0].exp() for first in firsts],
        "divergence": [torch.zeros(len(labels)), *(_divergence(*pair) for pair in zip(logs, logs[1:], strict=False))],
    }
    return {name: torch.stack([value.cpu() for value in values]).numpy() for name, values in measured.items()}


def _divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return KL(after || before) of log-probabilities (tokens, vocabulary), (tokens,)."""
    return (after.exp() * (after - before)).sum(-1)


def labelled_places(batches: Sequence[Batch]) -> tuple[Ints, Ints, Ints]:
    """Return (labels, sequence, position) of each labelled token, (tokens,) each, in the order of the batches."""
    labels, sequences, positions, before = [], [], [], 0
    for batch in batches:
        assert batch.labelled is not None
        # `labelled` holds flat positions: row * length + column.
        at = batch.labelled.cpu().numpy()
        rows, columns = np.divmod(at, batch.labels.shape[1])
        labels.append(batch.labels.flatten()[batch.labelled].cpu().numpy())
        sequences.append(rows + before)
        positions.append(columns)
        before += len(batch.labels)
    return np.concatenate(labels), np.concatenate(sequences), np.concatenate(positions)
