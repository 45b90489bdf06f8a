"""The training loop of the phases that train, baseline and learn.

Everything random in a step has a seed that follows from the phase's order and the step, never from a generator that
runs on. A run resumed at a step therefore draws what an uninterrupted run draws there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from raysweep.contracts import Batch, Examples, Task
from raysweep.errors import DivergedError
from raysweep.job.plan import LOG_EVERY, derived_seed
from raysweep.networks.plasticity.objective import label_count, training_losses
from raysweep.trial.data.tokens import BatchOrder
from raysweep.trial.measures.evaluation import to_device
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate, multipliers and gates by step; `step` counts finished steps, from 0.

    `born` is the number of finished steps at which a head was grown: each new head has a clock of its own, so several
    generations in one continuous phase do not restart each other.
    """

    steps: int
    lr: float
    warmup_fraction: float
    min_lr_fraction: float = 0.0
    new_head_lr_multiplier: float = 1.0
    multiplier_decay_steps: int | None = None
    gate_warmup_steps: int = 0
    gate_start: float = 1.0

    def learning_rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then a cosine towards the floor.

        The first step has a rate above 0, and the step after the last would have the floor: no step is without effect.
        """
        warmup = round(self.warmup_fraction * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        floor = self.min_lr_fraction * self.lr
        # The bound of 1 matters only to a phase that is all warm-up, and there only for the step after the last.
        return floor + (self.lr - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def multiplier(self, step: int, born: int = 0) -> float:
        """Return the learning-rate multiplier of new heads: from its start to exactly 1 by a half cosine."""
        # Without a decay of its own, the multiplier lasts from the birth to the end of the phase.
        decay = self.multiplier_decay_steps or self.steps - born
        age = step - born
        if age >= decay:
            return 1.0
        return 1.0 + (self.new_head_lr_multiplier - 1.0) * 0.5 * (1 + math.cos(math.pi * age / decay))

    def gate(self, step: int, born: int = 0) -> float:
        """Return the gate of new heads: from `gate_start` to exactly 1, linearly.

        It is never 0: behind a closed gate no weight of the head has a gradient.
        """
        age = step - born
        if age >= self.gate_warmup_steps:
            return 1.0
        return self.gate_start + (1.0 - self.gate_start) * age / self.gate_warmup_steps


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model compiled as one graph; code that the compiler cannot take is an error, not run uncompiled."""
    # Code compiled for earlier models in this process counts against the compiler's limit of recompilations.
    torch.compiler.reset()
    # torch annotates a function; a compiled module is a module.
    return cast(torch.nn.Module, torch.compile(model, fullgraph=True))


@dataclass(kw_only=True)
class Training:
    """Trains a model from a step to the end of its phase.

    Every callback is called on every rank, so that callbacks may exchange tensors.

    Args:
        examples: training examples, one a row.
        on_point: called after each logged step, with its point.
        on_step: called with the number of finished steps, 0 first; it may not change anything of the training.
        evaluate: returns the held-out loss; called every `evaluate_every` steps except after the last, whose loss is
            in the phase's record.
        step_flops: returns the FLOPs of a step of the present model; called in every step, after `before_step`.
        between_steps: called after each step except the last, with the number of finished steps, when the logging and
            evaluation of that step are done; it may end the training by raising.
        before_step: called with the number of finished steps; it may prune and grow heads.
    """

    state: TrialState
    schedule: Schedule
    examples: Examples
    task: Task
    order: BatchOrder
    training: dict[str, Any]
    runtime: Runtime
    on_point: Callable[[dict[str, float]], None] = lambda point: None
    on_step: Callable[[int], None] = lambda step: None
    evaluate: Callable[[], float] = lambda: 0.0
    evaluate_every: int | None = None
    step_flops: Callable[[], float] = lambda: 0.0
    between_steps: Callable[[int], None] = lambda step: None
    before_step: Callable[[int], None] = lambda step: None
    curve: list[dict[str, float]] = field(default_factory=list)
    """The logged points so far."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """The evaluations so far: step, loss, training_flops."""
    flops: float = 0.0
    """Training FLOPs so far."""
    unlogged: torch.Tensor = field(init=False)
    """Sum and number of this rank's step losses since the last logged point. They stay on the device: reading them at
    every step would make the CPU wait for the GPU."""

    def __post_init__(self) -> None:
        self.unlogged = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)

    def run(self, start: int = 0) -> list[dict[str, float]]:
        """Train from finished step `start` to the end; return the curve.

        Raises:
            DivergedError: the training loss or the gradient is not finite.
        """
        model, steps = self.state.model, self.schedule.steps
        model.train()
        # Compiled first, then wrapped: compiling the wrapped model would split its graph at the gradient buckets.
        wrapped = self.runtime.wrap(compiled(model) if self.training["compile"] else model)
        for step in range(start, steps):
            # Heads change first: the step's FLOPs, gates and measurements are those of the model that it trains.
            self.before_step(step)
            self.flops += self.step_flops()
            self.on_step(step)
            self._set_gates(step)
            self.unlogged[0] += self._accumulate(wrapped, step)
            self.unlogged[1] += 1
            # One norm over all gradients, the same on every rank, since gradients are averaged by now. Multipliers of
            # new heads come after it: they scale the update, and do not count in the norm.
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.training["clip_norm"])
            self.state.optimizer.step(self.schedule.learning_rate(step), self._multipliers(step))
            self.state.optimizer.zero_grad()
            done = step + 1
            self.runtime.beat()
            if done % LOG_EVERY == 0 or done == steps:
                self._log(done, norm)
            # After the last step the phase itself evaluates and stores the model, so neither is done twice.
            if done < steps:
                if self.evaluate_every and done % self.evaluate_every == 0:
                    self._evaluate(done)
                self.between_steps(done)
        # Before heads stop being new, so that the last point of their trajectories shows them.
        self.on_step(steps)
        self.state.settle()
        return self.curve

    def _accumulate(self, wrapped: torch.nn.Module, step: int) -> torch.Tensor:
        """Add up the gradients of one step; return its mean loss on this rank."""
        accumulation = self.training["accumulation"]
        # Seeded by the step alone: what a network draws for a whole step must be equal on all ranks.
        self.state.model.begin_step(self.order.seed + step)
        indices = self.order.indices(step, self.runtime.rank, self.runtime.world_size)
        seeds = self.order.seeds(step, self.runtime.rank, self.runtime.world_size)
        parts = zip(np.array_split(indices, accumulation), np.array_split(seeds, accumulation), strict=True)
        batches = [to_device(self.task.batch(self.examples[mine], own.tolist()), self.runtime) for mine, own in parts]
        # All parts are made before the first is trained on: each loss is divided by the labels of all of them.
        labels = self._labels_of_a_part(batches)
        mean = torch.zeros((), device=self.runtime.device)
        for part, batch in enumerate(batches):
            last = part == accumulation - 1
            # Ranks and parts see different examples, so their dropout masks differ too.
            seed = derived_seed(str(self.order.seed), "dropout", step, self.runtime.rank, part)
            # Gradients are exchanged once a step, in the backward pass of the last part, not once for every part.
            with nullcontext() if last else self.runtime.without_sync(wrapped):
                with self.runtime.seeded(seed), self.runtime.autocast(self.training["precision"]):
                    loss = training_losses(wrapped, batch).sum() / labels / accumulation
                loss.backward()
            mean += loss.detach()
        return mean

    def _labels_of_a_part(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Return the mean number of labels in one part of a rank's step, over all parts of all ranks.

        Losses are summed and divided by this mean, and gradients are averaged over parts and ranks: every label then
        weighs the same in the gradient of the step, whichever part and rank it is in.
        """
        count = torch.stack([label_count(batch.labels) for batch in batches]).double().mean()
        # Tasks with equally many labels an example spare the exchange: every rank knows the mean already.
        if not self.task.even:
            count = self.runtime.all_reduce(count) / self.runtime.world_size
        # A step without any label has a loss of 0, not 0 / 0.
        return count.float().clamp_min(1)

    def _set_gates(self, step: int) -> None:
        """Set the gates of new heads for a step, as long as any is in its warm-up."""
        state, schedule = self.state, self.schedule
        # Equality is included: at that age the gate is set once more, to exactly 1, and never again.
        if any(step - born <= schedule.gate_warmup_steps for born in state.new_heads.values()):
            gates = {slot: schedule.gate(step, born) for slot, born in state.new_heads.items()}
            state.model.set_gates(state.head_map, gates)

    def _multipliers(self, step: int) -> dict[int, float]:
        """Return the learning-rate multiplier of each generation of new heads, by birth."""
        return {born: self.schedule.multiplier(step, born) for born in set(self.state.new_slices.values())}

    def _evaluate(self, done: int) -> None:
        """Add an evaluation after `done` steps."""
        point = {"step": float(done), "loss": self.evaluate(), "training_flops": self.flops}
        self.evaluations.append(point)

    def _log(self, done: int, norm: torch.Tensor) -> None:
        """Add a point with the mean loss since the last one.

        Raises:
            DivergedError: the mean loss or the gradient norm is not finite.
        """
        # Losses of all steps since the last point are in the sum, so a NaN in any of them is noticed here.
        total, count = self.runtime.all_reduce(self.unlogged).tolist()
        self.unlogged.zero_()
        point = {
            "step": float(done),
            "loss": total / count,
            "lr": self.schedule.learning_rate(done - 1),
            "gradient_norm": float(norm),
        }
        if self.state.new_heads:
            # A point holds one generation, the youngest; the trajectory holds the gate of every new head.
            youngest = max(self.state.new_heads.values())
            point["new_head_gate"] = self.schedule.gate(done - 1, youngest)
            point["new_head_multiplier"] = self.schedule.multiplier(done - 1, youngest)
        if not (math.isfinite(point["loss"]) and math.isfinite(point["gradient_norm"])):
            raise DivergedError(
                f"at step {done} the loss is {point['loss']}, the gradient norm {point['gradient_norm']}."
            )
        self.curve.append(point)
        self.on_point(point)
