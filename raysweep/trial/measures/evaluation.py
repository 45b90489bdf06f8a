"""Measure a model on held-out examples: loss, accuracy and metrics, and text that it writes.

Every held-out number of a trial, inside training and after it, comes from `evaluate`, so that all are comparable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Batch, Examples, Task
from raysweep.errors import DataError, DivergedError
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.objective import label_count, label_losses, predictions
from raysweep.trial.data.tokens import shard
from raysweep.trial.measures.metrics import classification_metrics
from raysweep.trial.runtime import Runtime

# Text samples: how many held-out windows are continued, how much of each is the prompt, and how much is written.
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 16, 32
NGRAM = 3
"""Length of the token runs whose repetition is counted."""

Seeded = tuple[Batch, Sequence[int]]
"""A batch, and the seed of each of its examples."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out numbers over all labels of all ranks."""

    loss: float
    """Mean negative log-likelihood in nats."""
    accuracy: float
    """Share of labels that have the largest logit."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of a classifier, empty for other tasks; see trial/measures/metrics.py."""


@torch.no_grad()
def evaluate(
    model: PlasticModel, batches: Sequence[Batch], runtime: Runtime, precision: str, num_classes: int = 0
) -> HeldOut:
    """Return the held-out numbers over the batches of all ranks, of which each rank has any number.

    Args:
        num_classes: number of classes of a classifier, to return its metrics too; 0 for other tasks.

    Raises:
        DivergedError: the loss is not finite.
        DataError: no batch of any rank has a label. A batch without labels among others adds nothing.
    """
    was_training = model.training
    model.eval()
    # Sums and counts are added up, not means: batches and ranks with unequal numbers of labels then weigh each label
    # the same. In float64 the order of the additions, which depends on the number of ranks, hardly shows.
    total = torch.zeros(3, dtype=torch.float64, device=runtime.device)
    confusion = torch.zeros(num_classes**2, dtype=torch.float64, device=runtime.device)
    for batch in batches:
        runtime.beat()
        with runtime.autocast(precision):
            logits, labels = predictions(model, batch)
        # Outside autocast: the losses are taken from logits in fp32, in whatever precision these were computed.
        predicted = logits.argmax(-1)
        hits = (predicted == labels).sum()
        total += torch.stack([label_losses(logits, labels).sum(), hits, label_count(labels)]).double()
        if num_classes:
            # Each pair (label, predicted) has the index of its cell in the flattened [label][predicted] matrix.
            confusion += (labels * num_classes + predicted).bincount(minlength=num_classes**2)
    model.train(was_training)
    # Every rank takes part in this sum, even one without a batch: a rank that returned early would block the others.
    loss_sum, hits, count, *counts = runtime.all_reduce(torch.cat([total, confusion])).tolist()
    # All ranks hold the same sums here, so they raise the same error together.
    if not count:
        raise DataError("there is nothing to predict: none of the held-out examples has a label. Give another text.")
    loss = finite_loss(loss_sum / count)
    metrics = classification_metrics(np.reshape(counts, (num_classes, num_classes))) if num_classes else {}
    return HeldOut(loss=loss, accuracy=hits / count, metrics=metrics)


def finite_loss(loss: float) -> float:
    """Return a held-out loss, checked.

    Raises:
        DivergedError: it is not finite.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"the held-out loss is {loss}.")
    return loss


def held_out_sha256(examples: Examples, task: Task) -> str:
    """Return the hash of the inputs and labels of every held-out example, hidden tokens included.

    It depends on the examples, the task and each example's index, which is its seed, and not on batches or ranks.
    """
    batch = task.batch(examples, range(len(examples)))
    shown = (batch.inputs, batch.labels)
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in shown)).hexdigest()


def shared_batches(examples: Examples, batch_size: int, task: Task, runtime: Runtime) -> list[Batch]:
    """Return this rank's share of examples as batches on its device; every call returns equal ones."""
    return [batch for batch, _ in seeded_batches(examples, range(len(examples)), batch_size, task, runtime)]


def seeded_batches(
    examples: Examples, indices: Sequence[int], batch_size: int, task: Task, runtime: Runtime
) -> list[Seeded]:
    """Return this rank's share of some examples as batches on its device, each with its examples' seeds.

    The seed of an example is its index: the tokens that a task hides in it are the same in every evaluation, whatever
    the batch size and the number of ranks.
    """
    own = [indices[at] for at in shard(len(indices), runtime.rank, runtime.world_size)]
    parts = [own[at : at + batch_size] for at in range(0, len(own), batch_size)]
    return [(to_device(task.batch(examples[part], part), runtime), part) for part in parts]


def to_device(batch: Batch, runtime: Runtime) -> Batch:
    """Return a batch with its tensors on the rank's device."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    tensors = {name: tensor for name, tensor in fields.items() if tensor is not None}
    if runtime.device.type == "cuda":
        # A copy from pinned memory does not block: the next step is prepared while the GPU works at this one.
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return Batch(**{name: tensor.to(runtime.device, non_blocking=True) for name, tensor in tensors.items()})


@torch.no_grad()
def write_samples(model: PlasticModel, windows: Examples, tokenizer: Any, runtime: Runtime) -> list[dict[str, Any]]:
    """Continue the beginnings of the first held-out windows greedily; return prompts, texts and their repetition."""
    was_training = model.training
    model.eval()
    # Prompt and text together fill at most one window: a model has no position beyond the length it was built for.
    prompt_tokens = min(PROMPT_TOKENS, windows.shape[1] // 2)
    new_tokens = min(NEW_TOKENS, windows.shape[1] - prompt_tokens)
    prompts = torch.from_numpy(windows[:PROMPTS, :prompt_tokens].astype("int64")).to(runtime.device)
    network: Any = model.network
    # All prompts are equally long, so nothing is padded and the padding id means nothing.
    # Greedy decoding and an exact length draw no random number, so texts of two phases can be compared.
    written = network.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=False, use_cache=True,
        min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0,
    )[:, prompt_tokens:].tolist()  # fmt: skip
    model.train(was_training)
    return [
        {"prompt": tokenizer.decode(prompt), "text": tokenizer.decode(text), "repetition": repetition(text)}
        for prompt, text in zip(prompts.tolist(), written, strict=True)
    ]


def repetition(tokens: Sequence[int]) -> float:
    """Return the share of 3-grams that occurred before in the same text; 0 for a text without 3-grams."""
    grams = Counter(tuple(tokens[at : at + NGRAM]) for at in range(len(tokens) - NGRAM + 1))
    total = sum(grams.values())
    return (total - len(grams)) / total if total else 0.0
