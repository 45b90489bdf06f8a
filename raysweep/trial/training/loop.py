"""The training loop of baseline and learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

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
    """Everything that depends on the step; `step` counts finished steps, from 0."""

    steps: int
    lr: float
    warmup_fraction: float
    min_lr_fraction: float = 0.0
    new_head_lr_multiplier: float = 1.0
    multiplier_decay_steps: int | None = None
    gate_warmup_steps: int = 0
    gate_start: float = 1.0

    def learning_rate(self, step: int) -> float:
        """Linear warm-up from above 0, then cosine towards the floor, which the step after the last would reach."""
        warmup = round(self.warmup_fraction * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        floor = self.min_lr_fraction * self.lr
        return floor + (self.lr - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def multiplier(self, step: int, born: int = 0) -> float:
        """From the multiplier to exactly 1 by a half cosine, for heads grown before step `born`."""
        decay = self.multiplier_decay_steps or self.steps - born
        age = step - born
        if age >= decay:
            return 1.0
        return 1.0 + (self.new_head_lr_multiplier - 1.0) * 0.5 * (1 + math.cos(math.pi * age / decay))

    def gate(self, step: int, born: int = 0) -> float:
        """From gate_start to exactly 1, linearly; never 0, where nothing but the gate would learn."""
        age = step - born
        if age >= self.gate_warmup_steps:
            return 1.0
        return self.gate_start + (1.0 - self.gate_start) * age / self.gate_warmup_steps


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model, compiled whole: what the compiler cannot take is an error, and never run some other way."""
    torch.compiler.reset()  # what was compiled for earlier models counts against a limit
    return torch.compile(model, fullgraph=True)


@dataclass(kw_only=True)
class Training:
    """One training phase, from a step on.

    Args:
        examples: training examples, one a row.
        on_point: called on every rank after each logged step, with its point.
        on_step: called on every rank with the number of finished steps, 0 first; nothing of the training may change.
        evaluate: returns the held-out loss; called on every rank every `evaluate_every` steps but the last.
        step_flops: returns what the present model's step costs; asked for at the start and after `before_step`.
        between_steps: called on every rank after each step but the last, with the number of finished steps, when all
            that is due at that step is done; may end the training by raising.
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
    """Called on every rank with the number of finished steps; may change heads."""
    curve: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """step, loss, training_flops"""
    flops: float = 0.0
    """Spent so far."""
    unlogged: torch.Tensor = field(init=False)
    """Sum and number of this rank's step losses since the last logged point."""

    def __post_init__(self) -> None:
        self.unlogged = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)

    def run(self, start: int = 0) -> list[dict[str, float]]:
        """Train from finished step `start` to the end; return the curve.

        Raises:
            DivergedError: the training loss or the gradient is not finite.
        """
        model, steps = self.state.model, self.schedule.steps
        model.train()
        wrapped = self.runtime.wrap(compiled(model) if self.training["compile"] else model)
        for step in range(start, steps):
            self.before_step(step)
            self.flops += self.step_flops()
            self.on_step(step)
            self._set_gates(step)
            self.unlogged[0] += self._accumulate(wrapped, step)
            self.unlogged[1] += 1
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.training["clip_norm"])
            self.state.optimizer.step(self.schedule.learning_rate(step), self._multipliers(step))
            self.state.optimizer.zero_grad()
            done = step + 1
            if done % LOG_EVERY == 0 or done == steps:
                self._log(done, norm)
            if done < steps:
                if self.evaluate_every and done % self.evaluate_every == 0:
                    self._evaluate(done)
                self.between_steps(done)
        self.on_step(steps)
        self.state.settle()
        return self.curve

    def _accumulate(self, wrapped: torch.nn.Module, step: int) -> torch.Tensor:
        """Add up the gradients of one step; return its mean loss on this rank."""
        accumulation = self.training["accumulation"]
        self.state.model.begin_step(self.order.seed + step)
        indices = self.order.indices(step, self.runtime.rank, self.runtime.world_size)
        seeds = self.order.seeds(step, self.runtime.rank, self.runtime.world_size)
        parts = zip(np.array_split(indices, accumulation), np.array_split(seeds, accumulation), strict=True)
        batches = [to_device(self.task.batch(self.examples[mine], own.tolist()), self.runtime) for mine, own in parts]
        labels = self._labels_of_a_part(batches)
        mean = torch.zeros((), device=self.runtime.device)
        for part, batch in enumerate(batches):
            last = part == accumulation - 1
            seed = derived_seed(str(self.order.seed), "dropout", step, self.runtime.rank, part)
            with nullcontext() if last else self.runtime.without_sync(wrapped):
                with self.runtime.seeded(seed), self.runtime.autocast(self.training["precision"]):
                    loss = training_losses(wrapped, batch).sum() / labels / accumulation
                loss.backward()
            mean += loss.detach()
        return mean

    def _labels_of_a_part(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Return the mean number of labels in one part of a rank's step, over all parts of all ranks.

        Each label then weighs the same in the step's gradient, on whichever rank it stands.
        """
        count = torch.stack([label_count(batch.labels) for batch in batches]).double().mean()
        if not self.task.even:
            count = self.runtime.all_reduce(count) / self.runtime.world_size
        return count.float().clamp_min(1)

    def _set_gates(self, step: int) -> None:
        state, schedule = self.state, self.schedule
        if any(step - born <= schedule.gate_warmup_steps for born in state.new_heads.values()):
            gates = {slot: schedule.gate(step, born) for slot, born in state.new_heads.items()}
            state.model.set_gates(state.head_map, gates)

    def _multipliers(self, step: int) -> dict[int, float]:
        """Return the multiplier of each generation of new heads, by its birth."""
        return {born: self.schedule.multiplier(step, born) for born in set(self.state.new_slices.values())}

    def _evaluate(self, done: int) -> None:
        point = {"step": float(done), "loss": self.evaluate(), "training_flops": self.flops}
        self.evaluations.append(point)

    def _log(self, done: int, norm: torch.Tensor) -> None:
        total, count = self.runtime.all_reduce(self.unlogged).tolist()
        self.unlogged.zero_()
        point = {
            "step": float(done),
            "loss": total / count,
            "lr": self.schedule.learning_rate(done - 1),
            "gradient_norm": float(norm),
        }
        if self.state.new_heads:
            youngest = max(self.state.new_heads.values())
            point["new_head_gate"] = self.schedule.gate(done - 1, youngest)
            point["new_head_multiplier"] = self.schedule.multiplier(done - 1, youngest)
        if not (math.isfinite(point["loss"]) and math.isfinite(point["gradient_norm"])):
            raise DivergedError(
                f"at step {done} the loss is {point['loss']}, the gradient norm {point['gradient_norm']}."
            )
        self.curve.append(point)
        self.on_point(point)
