"""Measure a network on held-out examples while tokens leave it early, by an exit rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raysweep.contracts import Exit
from raysweep.errors import DataError
from raysweep.job import registry
from raysweep.job.cycle import InferSpec
from raysweep.job.spec import ModelSpec
from raysweep.networks.configuration import configuration
from raysweep.networks.plasticity.compaction import compact
from raysweep.networks.plasticity.objective import flat_labels, label_count, label_losses
from raysweep.networks.pnn.dynamic import check_exit, infer
from raysweep.records.schema import perplexity
from raysweep.trial.measures.evaluation import Seeded, finite_loss
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState


@dataclass(frozen=True, kw_only=True)
class ExitNumbers:
    """Held-out numbers of a network with exits, over all labels of all ranks."""

    loss: float
    """Mean negative log-likelihood in nats."""
    accuracy: float
    """Share of labels that have the largest logit."""
    flops_per_token: float
    """Forward FLOPs spent, divided by all positions of the windows: skipped work, that for padding too, lowers it."""
    mean_steps: float
    """Refiner steps that a token takes, padding left out."""

    @property
    def numbers(self) -> dict[str, float]:
        """The fields by name, and the perplexity."""
        return {**vars(self), "perplexity": perplexity(self.loss)}


def check_inference(spec: InferSpec, model: ModelSpec, *, seq_len: int, examples: int) -> None:
    """Check that a model supports the exit rule of `cycle.infer`, without loading its weights.

    Raises:
        ModelError: it does not.
        DataError: there are too few held-out examples for two halves.
    """
    check_exit(configuration(model, seq_len=seq_len)[0], rule_of(spec))
    if examples < 2:
        raise DataError(
            "cycle.infer searches on one half of the held-out examples and reports the other, but there is only 1. "
            "Raise data.eval_tokens, or lower data.seq_len."
        )


def rule_of(spec: InferSpec) -> Exit:
    """Return the exit rule that `cycle.infer` names."""
    rule: Exit = registry.build("exits", spec.exit, spec.options)
    return rule


def present_network(state: TrialState) -> Any:
    """Return a trial's network without its absent heads, so that they take no FLOPs.

    A network whose heads differ from step to step stays whole: its absent heads are masked, and their FLOPs count.
    """
    network: Any = state.model.network
    # One refiner serves every step: a head that one step has masked and another uses cannot leave the weights.
    if state.head_map.present.all() or network.config.step_head_mask is not None:
        return network
    return compact(network, registry.build("models", network.config.model_type), state.head_map)


def halves_of(count: int) -> tuple[range, range]:
    """Return the indices of the held-out examples that a search uses, and of those that are reported.

    Neither half alone serves both: a threshold chosen on the reported examples would look better than it is.
    """
    # Every second example, not the first and the last half: both halves then cover the whole held-out text.
    return range(0, count, 2), range(1, count, 2)


def measure_inference(
    network: Any, batches: Sequence[Seeded], rule: Exit,
    *, steps: int, min_steps: int = 1, runtime: Runtime, precision: str,
) -> ExitNumbers:  # fmt: skip
    """Return the held-out numbers with an exit rule, over the batches of all ranks, of which each has any number.

    Args:
        steps: largest number of refiner steps.
        min_steps: refiner steps before which no token leaves.

    Raises:
        DivergedError: the loss is not finite.
    """
    was_training = network.training
    network.eval()
    total = torch.zeros(7, dtype=torch.float64, device=runtime.device)
    for batch, seeds in batches:
        runtime.beat()
        with runtime.autocast(precision):
            found = infer(network, batch, rule, steps=steps, min_steps=min_steps, seeds=seeds)
        # Logits come in the order of the labelled positions, so the labels are picked in the same way.
        labels = flat_labels(batch.labels, batch.labelled)
        losses = label_losses(found.logits, labels).sum()
        hits, count = (found.logits.argmax(-1) == labels).sum(), label_count(labels)
        taken, real = found.steps.sum(), (found.steps > 0).sum()
        # Padding has 0 steps, and does not count in the mean. FLOPs are a Python integer and the others tensors; as
        # float64 all can be added up over batches and ranks together.
        numbers = (losses, hits, count, taken, real, found.flops, found.steps.numel())
        total += torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=runtime.device)
    network.train(was_training)
    loss_sum, hits, count, taken, real, flops, places = runtime.all_reduce(total).tolist()
    loss = finite_loss(loss_sum / count)
    return ExitNumbers(loss=loss, accuracy=hits / count, flops_per_token=flops / places, mean_steps=taken / real)
