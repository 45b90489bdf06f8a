"""The loss of every task: cross-entropy at the labelled positions."""

from __future__ import annotations

import torch
from torch.nn import functional

from raysweep.contracts import Batch

NO_LABEL = -100


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return a plastic model's logits at all positions of a batch; the model may be wrapped, as by DDP."""
    return model(batch.inputs, batch.attention_mask, batch.token_types)


def predictions(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (..., classes) and labels (...), of the labelled positions alone where the batch lists them."""
    if batch.labelled is None:
        return logits_of(model, batch), batch.labels
    logits = model(batch.inputs, batch.attention_mask, batch.token_types, batch.labelled)
    return logits, flat_labels(batch.labels, batch.labelled)


def losses_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the loss of each label, 0 where there is none; of the shape of the labels."""
    losses = label_losses(*predictions(model, batch))
    return losses if batch.labelled is None else _in_place(losses, batch.labelled, batch.labels)


def training_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the training loss of each label; a network that is trained at several steps adds up its steps' losses."""
    # Through `forward` and with labels: under DDP, only calls of the wrapper's forward synchronise gradients.
    losses = model(batch.inputs, batch.attention_mask, batch.token_types, batch.labelled, batch.labels)
    return losses if batch.labelled is None else _in_place(losses, batch.labelled, batch.labels)


def _in_place(losses: torch.Tensor, labelled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return losses.new_zeros(labels.numel()).index_copy(0, labelled, losses).view_as(labels)


def flat_labels(labels: torch.Tensor, labelled: torch.Tensor | None) -> torch.Tensor:
    """Return flat labels: those at the given flat positions, or all of them."""
    return labels.flatten() if labelled is None else labels.flatten()[labelled]


def label_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each label in nats, 0 where there is none; of the shape of the labels.

    Args:
        logits: (batch, positions, classes) or (batch, classes); taken to fp32 at least.
    """
    # A log-softmax over a large vocabulary loses digits in half precision.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=NO_LABEL, reduction="none"
    )  # fmt: skip
    return losses.view_as(labels)


def mean_loss(losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean over all labels of a batch; 0 where it has none."""
    # A batch may hide no token at all; its loss is then 0 and not NaN.
    return losses.sum() / label_count(labels).clamp_min(1)


def example_losses(losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each example's mean loss over its own labels, (batch,)."""
    by_example = losses.reshape(labels.shape[0], -1)
    return by_example.sum(1) / (labels.reshape(labels.shape[0], -1) != NO_LABEL).sum(1).clamp_min(1)


def label_count(labels: torch.Tensor) -> torch.Tensor:
    """Return the number of labels of a batch."""
    return (labels != NO_LABEL).sum()
