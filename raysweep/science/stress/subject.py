"""What every protocol begins with: one trained network, two texts, and the same way to train, damage and measure."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Array, Batch, Examples, Family, HeadStatistics, Slot, Task
from raysweep.errors import DivergedError
from raysweep.job import registry
from raysweep.job.plan import derived_seed
from raysweep.job.spec import TrainingSpec
from raysweep.networks.plasticity.budget import lowest_heads, share
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.objective import NO_LABEL, losses_of
from raysweep.science.statistics.finding import Interval
from raysweep.science.statistics.resampling import Ints, interval
from raysweep.trial.acts import HeadMeter
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.measures.evaluation import shared_batches
from raysweep.trial.measures.measures import PROBE_BATCH
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.training.loop import Schedule, Training


@dataclass(frozen=True, kw_only=True)
class StressOptions:
    """What to try."""

    steps: int = 100
    """Of each round of training."""
    rounds: int = 4
    """Of task alternation; the first is on A."""
    level: float = 0.3
    """Share of the present heads that is removed."""
    strategy: str = "taylor"
    """A file in raysweep/strategies/prune/, or a dotted module."""
    options: dict[str, Any] = field(default_factory=dict)
    """The strategy's own."""
    draws: int = 3
    """Of as many heads at random, to set targeted damage beside."""
    lr: float = 5e-4
    batch_size: int = 8
    baseline: int = 0
    """Steps on both texts, mixed, before all else."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One task: a text to learn, and one to measure on."""

    name: str
    train: Examples
    held_out: Sequence[Batch]
    probed: Sequence[Batch]
    """Windows of the training text that heads are scored on."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of every held-out label of one text."""

    values: Array
    """(labels,), nats"""
    windows: Ints
    """(labels,), the window that each stands in."""

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    def above(self, before: Losses) -> Interval:
        """Return by how much these are above earlier ones, paired, with a 95% bootstrap interval over windows."""
        return interval(self.values - before.values, self.windows, np.random.default_rng(0))


@dataclass(frozen=True, kw_only=True)
class StressSubject:
    """A network that is never changed: what is trained or damaged is a copy."""

    network: Any
    family: Family
    head_map: HeadMap
    task: Task
    a: Corpus
    b: Corpus
    question: StressOptions
    runtime: Runtime

    @property
    def count(self) -> int:
        """Heads to remove: `level` of those that are present, rounded half up."""
        return share(self.question.level, self.head_map.active)

    def state(self, without: Sequence[Slot] = ()) -> TrialState:
        """Return a copy of the network to work on, without some of its heads."""
        settings = TrainingSpec()
        state = TrialState.begun(copy.deepcopy(self.network), self.family, settings.weight_decay)
        state.head_map = self.head_map.without(without)
        state.refresh()
        return state

    def train(self, state: TrialState, examples: Examples, purpose: object, steps: int | None = None) -> None:
        """Train a state for a round, as a learn phase does: linear warm-up, then a cosine to 0.

        Args:
            purpose: decides on the order of the windows.

        Raises:
            DivergedError: the loss or the gradient is no number.
        """
        settings = TrainingSpec(batch_size=self.question.batch_size)
        steps = steps or self.question.steps
        Training(
            state=state,
            schedule=Schedule(steps=steps, lr=self.question.lr, warmup_fraction=settings.warmup_fraction),
            examples=examples,
            task=self.task,
            order=BatchOrder(
                num_windows=len(examples),
                batch_size=settings.batch_size,
                seed=derived_seed(str(self.question.seed), "stress", purpose),
            ),
            training=settings.model_dump(),
            runtime=self.runtime,
        ).run()

    @torch.no_grad()
    def losses(self, state: TrialState, corpus: Corpus) -> Losses:
        """Measure a state on the held-out windows of a text, in fp32.

        Raises:
            DivergedError: a loss is no number.
        """
        state.model.eval()
        values, windows, before = [], [], 0
        for batch in corpus.held_out:
            asked = batch.labels != NO_LABEL
            values.append(losses_of(state.model, batch)[asked].double().cpu().numpy())
            windows.append(torch.nonzero(asked)[:, 0].cpu().numpy() + before)
            before += len(batch.labels)
        found = Losses(values=np.concatenate(values), windows=np.concatenate(windows))
        if not math.isfinite(found.mean):
            raise DivergedError(f"the held-out loss on {corpus.name} is {found.mean}.")
        return found

    def scores(self, corpus: Corpus) -> Array:
        """Return how important each head is for a text by the strategy, [layers][heads]; see `contracts.Pruner`."""
        pruner = registry.build("prune", self.question.strategy, self.question.options)
        examiner = HeadMeter(batches=corpus.probed, runtime=self.runtime, causal=self.task.causal)
        statistics: HeadStatistics = examiner.statistics(self.state(), requires=pruner.requires)
        found: Array = pruner(statistics, self.generator("scores"))
        return found

    def lowest(self, scores: Array) -> list[Slot]:
        """Return the heads to remove by scores, lowest first; each layer keeps one."""
        return lowest_heads(
            scores, self.head_map, self.count, budget="global", min_heads_per_layer=1, protected=set()
        )  # fmt: skip

    def generator(self, *purpose: object) -> np.random.Generator:
        return np.random.default_rng(derived_seed(str(self.question.seed), "stress", *purpose))


def corpus_of(
    name: str,
    train: Examples,
    held_out: Examples,
    probe_windows: int,
    question: StressOptions,
    task: Task,
    runtime: Runtime,
) -> Corpus:
    """Return a text as windows (count, tokens) to train on, and batches to measure and to score heads on."""
    return Corpus(
        name=name,
        train=train,
        held_out=shared_batches(held_out, question.batch_size, task, runtime),
        probed=shared_batches(train[:probe_windows], PROBE_BATCH, task, runtime),
    )
