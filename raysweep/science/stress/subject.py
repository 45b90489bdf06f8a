"""The subject of stress protocols: one trained network and two texts, and how to train, damage and measure it."""

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
    """Options of the protocols."""

    steps: int = 100
    """Training steps of a round."""
    rounds: int = 4
    """Rounds of task alternation; the first is on A."""
    level: float = 0.3
    """Share of the present heads to remove."""
    strategy: str = "taylor"
    """Pruning strategy that ranks heads: a file in raysweep/strategies/prune/, or a dotted module."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the strategy."""
    draws: int = 3
    """Random draws of heads that targeted damage is compared with."""
    lr: float = 5e-4
    batch_size: int = 8
    baseline: int = 0
    """Training steps on both texts, mixed, before all else."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One text: windows to train on, and batches to measure and to rank heads on."""

    name: str
    train: Examples
    held_out: Sequence[Batch]
    probed: Sequence[Batch]
    """Training windows that heads are scored on."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of all held-out labels of one text."""

    values: Array
    """(labels,), nats."""
    windows: Ints
    """(labels,), number of the window that each label belongs to."""

    @property
    def mean(self) -> float:
        """Nats a label."""
        return float(self.values.mean())

    def above(self, before: Losses) -> Interval:
        """Return the mean rise over earlier losses, paired by label, with its 95% bootstrap interval over windows."""
        # A seed of its own: the same losses have the same interval, whichever protocol asks.
        return interval(self.values - before.values, self.windows, np.random.default_rng(0))


@dataclass(frozen=True, kw_only=True)
class StressSubject:
    """A network and two texts. The network is never changed: copies are trained and damaged."""

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
        """Number of heads to remove: `level` of the present ones, rounded half up."""
        return share(self.question.level, self.head_map.active)

    def state(self, without: Sequence[Slot] = ()) -> TrialState:
        """Return a copy of the network to train or measure, without some of its heads."""
        # Every copy has a new optimizer: no arm carries momentum of another one.
        settings = TrainingSpec()
        state = TrialState.begun(copy.deepcopy(self.network), self.family, settings.weight_decay)
        # Heads are closed by their gates, which equals their removal exactly and keeps the shape of the network.
        state.head_map = self.head_map.without(without)
        state.refresh()
        return state

    def train(self, state: TrialState, examples: Examples, purpose: object, steps: int | None = None) -> None:
        """Train a state for a round, as a learn phase does: linear warm-up, then a cosine to 0.

        Args:
            examples: (windows, tokens).
            purpose: seeds the order of the windows; equal purposes train in the same order.
            steps: `question.steps` unless given.

        Raises:
            DivergedError: the loss or the gradient is not finite.
        """
        # All other settings are a job's defaults, so that a round is like a learn phase of a sweep.
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
            DivergedError: a loss is not finite.
        """
        # Dropout off: otherwise the losses of two states would differ by its noise, too.
        state.model.eval()
        values, windows, before = [], [], 0
        for batch in corpus.held_out:
            # Positions without a label: the last one of a causal window, visible tokens of a masked one.
            labelled = batch.labels != NO_LABEL
            values.append(losses_of(state.model, batch)[labelled].double().cpu().numpy())
            # Windows are numbered over all batches: they are the units of the bootstrap.
            windows.append(torch.nonzero(labelled)[:, 0].cpu().numpy() + before)
            before += len(batch.labels)
        found = Losses(values=np.concatenate(values), windows=np.concatenate(windows))
        if not math.isfinite(found.mean):
            raise DivergedError(f"the held-out loss on {corpus.name} is {found.mean}.")
        return found

    def scores(self, corpus: Corpus) -> Array:
        """Return the importance of each head for a text by the strategy, [layers][heads]; see `contracts.Pruner`."""
        # Only what the strategy requires is measured; the generator is for strategies that draw at random.
        pruner = registry.build("prune", self.question.strategy, self.question.options)
        examiner = HeadMeter(batches=corpus.probed, runtime=self.runtime, causal=self.task.causal)
        statistics: HeadStatistics = examiner.statistics(self.state(), requires=pruner.requires)
        found: Array = pruner(statistics, self.generator("scores"))
        return found

    def lowest(self, scores: Array) -> list[Slot]:
        """Return the `count` heads with the lowest scores [layers][heads]; each layer keeps one head."""
        # Heads are ranked over all layers; without the bound a layer could lose all of them.
        return lowest_heads(
            scores, self.head_map, self.count, budget="global", min_heads_per_layer=1, protected=set()
        )  # fmt: skip

    def generator(self, *purpose: object) -> np.random.Generator:
        # Seeded by purpose, so that a protocol draws the same numbers alone as among the others.
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
    """Return a text as a corpus.

    Args:
        train, held_out: (windows, tokens).
        probe_windows: training windows to score heads on. Held-out windows would rank heads by what is measured later.
    """
    return Corpus(
        name=name,
        train=train,
        held_out=shared_batches(held_out, question.batch_size, task, runtime),
        probed=shared_batches(train[:probe_windows], PROBE_BATCH, task, runtime),
    )
