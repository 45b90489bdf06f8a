"""The loss of every task: cross-entropy at the positions that have a label."""

from __future__ import annotations

import torch
from torch.nn import functional

from raysweep.contracts import Batch

NO_LABEL = -100


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Run a plastic model, wrapped or not, on a batch."""
    return model(batch.inputs) if batch.attention_mask is None else model(batch.inputs, batch.attention_mask)


def label_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each label in nats, 0 where there is none; of the shape of the labels.

    Args:
        logits: (batch, positions, classes) or (batch, classes); taken to fp32 at least.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=NO_LABEL, reduction="none"
    )  # fmt: skip
    return losses.view_as(labels)


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean over all labels of a batch; 0 where it has none."""
    return label_losses(logits, labels).sum() / label_count(labels).clamp_min(1)


def example_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each example's mean loss over its own labels, (batch,)."""
    losses = label_losses(logits, labels).reshape(labels.shape[0], -1)
    return losses.sum(1) / (labels.reshape(labels.shape[0], -1) != NO_LABEL).sum(1).clamp_min(1)


def label_count(labels: torch.Tensor) -> torch.Tensor:
    """Return the number of labels of a batch."""
    return (labels != NO_LABEL).sum()
