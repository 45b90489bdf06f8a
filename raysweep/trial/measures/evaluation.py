"""The one way a model is measured: held-out loss and accuracy on fixed examples, and text it writes."""

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

PROMPTS, PROMPT_TOKENS, NEW_TOKENS, NGRAM = 3, 16, 32, 3


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out numbers over all labels, all ranks together."""

    loss: float
    """Mean negative log-likelihood in nats."""
    accuracy: float
    """Share of labels that the largest logit hits."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of a classifier: see trial/measures/metrics."""


@torch.no_grad()
def evaluate(
    model: PlasticModel, batches: Sequence[Batch], runtime: Runtime, precision: str, num_classes: int = 0
) -> HeldOut:
    """Measure a model on this rank's share of the held-out batches (any number).

    Args:
        num_classes: of a classifier, to measure its metrics too.

    Raises:
        DivergedError: the loss is not finite.
        DataError: no batch of any rank has a label; one without any among others counts for nothing.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(3, dtype=torch.float64, device=runtime.device)
    confusion = torch.zeros(num_classes**2, dtype=torch.float64, device=runtime.device)
    for batch in batches:
        with runtime.autocast(precision):
            logits, labels = predictions(model, batch)
        predicted = logits.argmax(-1)
        hits = (predicted == labels).sum()
        total += torch.stack([label_losses(logits, labels).sum(), hits, label_count(labels)]).double()
        if num_classes:
            confusion += (labels * num_classes + predicted).bincount(minlength=num_classes**2)
    model.train(was_training)
    loss_sum, hits, count, *counts = runtime.all_reduce(torch.cat([total, confusion])).tolist()
    if not count:
        raise DataError("there is nothing to predict: none of the held-out examples has a label. Give another text.")
    loss = loss_sum / count
    if not math.isfinite(loss):
        raise DivergedError(f"the held-out loss is {loss}.")
    metrics = classification_metrics(np.reshape(counts, (num_classes, num_classes))) if num_classes else {}
    return HeldOut(loss=loss, accuracy=hits / count, metrics=metrics)


def held_out_sha256(examples: Examples, task: Task) -> str:
    """Return the hash of what every evaluation shows and asks: the held-out examples, with the tokens hidden in them.

    It follows from the examples, the task and each example's index, which is its seed; batches and ranks do not matter.
    """
    batch = task.batch(examples, range(len(examples)))
    shown = (batch.inputs, batch.labels)
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in shown)).hexdigest()


def shared_batches(examples: Examples, batch_size: int, task: Task, runtime: Runtime) -> list[Batch]:
    """Return this rank's share of examples as batches on its device: the same ones whenever they are asked for."""
    indices = shard(len(examples), runtime.rank, runtime.world_size)
    return [
        to_device(task.batch(examples[mine], mine.tolist()), runtime)
        for mine in (indices[at : at + batch_size] for at in range(0, len(indices), batch_size))
    ]


def to_device(batch: Batch, runtime: Runtime) -> Batch:
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    tensors = {name: tensor for name, tensor in fields.items() if tensor is not None}
    if runtime.device.type == "cuda":
        # From pinned memory the copy waits for nothing: the next step is prepared while the GPU is at this one.
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return Batch(**{name: tensor.to(runtime.device, non_blocking=True) for name, tensor in tensors.items()})


@torch.no_grad()
def write_samples(model: PlasticModel, windows: Examples, tokenizer: Any, runtime: Runtime) -> list[dict[str, Any]]:
    """Continue the beginnings of the first held-out windows greedily, and say how much each repeats itself."""
    was_training = model.training
    model.eval()
    prompt_tokens = min(PROMPT_TOKENS, windows.shape[1] // 2)
    new_tokens = min(NEW_TOKENS, windows.shape[1] - prompt_tokens)
    prompts = torch.from_numpy(windows[:PROMPTS, :prompt_tokens].astype("int64")).to(runtime.device)
    network: Any = model.network
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
    """Return the share of 3-grams that occurred before in the same text; 0 for text too short to repeat."""
    grams = Counter(tuple(tokens[at : at + NGRAM]) for at in range(len(tokens) - NGRAM + 1))
    total = sum(grams.values())
    return (total - len(grams)) / total if total else 0.0
