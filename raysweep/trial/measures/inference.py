"""Measure a network on held-out examples with tokens leaving it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raysweep.contracts import Batch, Examples, Exit, Task
from raysweep.errors import DataError, DivergedError
from raysweep.job import registry
from raysweep.job.cycle import InferSpec
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import configuration
from raysweep.networks.plasticity.compaction import compact
from raysweep.networks.plasticity.objective import flat_labels, label_count, label_losses
from raysweep.networks.pnn.dynamic import check_exit, infer
from raysweep.records.schema import perplexity
from raysweep.trial.data.tokens import shard
from raysweep.trial.measures.evaluation import to_device
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState

Seeded = tuple[Batch, Sequence[int]]
"""A batch, and the seed of each of its examples."""


@dataclass(frozen=True, kw_only=True)
class ExitNumbers:
    """Numbers over all labels, all ranks together."""

    loss: float
    """Mean negative log-likelihood in nats."""
    accuracy: float
    flops_per_token: float
    """Spent, over all positions of the windows: what is left out, padding too, lowers it."""
    mean_steps: float
    """That a token takes, pads left out."""

    @property
    def numbers(self) -> dict[str, float]:
        return {**vars(self), "perplexity": perplexity(self.loss)}


def check_inference(spec: InferSpec, model: ModelSpec, *, seq_len: int, examples: int) -> None:
    """Check that tokens can leave a model as a job says, without loading its weights.

    Raises:
        ModelError: they cannot.
        DataError: the held-out examples have no two halves.
    """
    check_exit(configuration(model, seq_len=seq_len)[0], rule_of(spec))
    if examples < 2:
        raise DataError(
            "cycle.infer searches on one half of the held-out examples and reports the other, but there is only 1. "
            "Raise data.eval_tokens, or lower data.seq_len."
        )


def rule_of(spec: InferSpec) -> Exit:
    rule: Exit = registry.build("exits", spec.exit, spec.options)
    return rule


def present_network(state: TrialState) -> Any:
    """Return a trial's network without its absent heads, so that they cost nothing.

    One whose heads differ from step to step cannot be made smaller: its absent ones are silent, and cost.
    """
    network: Any = state.model.network
    if state.head_map.present.all() or network.config.step_head_mask is not None:
        return network
    return compact(network, registry.build("models", network.config.model_type), state.head_map)


def halves_of(count: int) -> tuple[range, range]:
    """Return the numbers of the held-out examples that choices are made on, and of those that are reported."""
    return range(0, count, 2), range(1, count, 2)


def seeded_batches(
    examples: Examples, indices: Sequence[int], batch_size: int, task: Task, runtime: Runtime
) -> list[Seeded]:
    """Return this rank's share of some examples as batches; what is hidden of each follows from its number."""
    own = [indices[at] for at in shard(len(indices), runtime.rank, runtime.world_size)]
    parts = [own[at : at + batch_size] for at in range(0, len(own), batch_size)]
    return [(to_device(task.batch(examples[part], part), runtime), part) for part in parts]


def measure_inference(
    network: Any, batches: Sequence[Seeded], rule: Exit,
    *, steps: int, min_steps: int = 1, runtime: Runtime, precision: str,
) -> ExitNumbers:  # fmt: skip
    """Measure a network on this rank's share of held-out batches (any number), with tokens leaving by a rule.

    Raises:
        DivergedError: the loss is not finite.
    """
    was_training = network.training
    network.eval()
    total = torch.zeros(7, dtype=torch.float64, device=runtime.device)
    for batch, seeds in batches:
        with runtime.autocast(precision):
            found = infer(network, batch, rule, steps=steps, min_steps=min_steps, seeds=seeds)
        labels = flat_labels(batch.labels, batch.labelled)
        losses = label_losses(found.logits, labels).sum()
        hits, count = (found.logits.argmax(-1) == labels).sum(), label_count(labels)
        taken, real = found.steps.sum(), (found.steps > 0).sum()
        numbers = (losses, hits, count, taken, real, found.flops, found.steps.numel())
        total += torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=runtime.device)
    network.train(was_training)
    loss_sum, hits, count, taken, real, flops, places = runtime.all_reduce(total).tolist()
    loss = loss_sum / count
    if not math.isfinite(loss):
        raise DivergedError(f"the held-out loss is {loss}.")
    return ExitNumbers(loss=loss, accuracy=hits / count, flops_per_token=flops / places, mean_steps=taken / real)
