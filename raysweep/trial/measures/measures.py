"""Measure a trial's model in the same way in every phase: held-out numbers, head statistics, parameters and FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysweep.contracts import Task
from raysweep.job.cycle import InferSpec
from raysweep.job.plan import TrialPlan
from raysweep.networks.plasticity.accounting import (
    TRAINING_TO_FORWARD,
    active_parameters,
    flops_per_token,
    positions,
)
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.records.schema import perplexity
from raysweep.trial.acts import HeadMeter
from raysweep.trial.data.examples import Dataset
from raysweep.trial.data.trial_data import trial_data, trial_task
from raysweep.trial.measures.evaluation import HeldOut, evaluate, seeded_batches, shared_batches, write_samples
from raysweep.trial.measures.inference import halves_of, measure_inference, present_network, rule_of
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState

PROBE_BATCH = 4
"""Windows in a batch of the probe, whatever the batch size of training is."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measures the model of one trial, on all ranks together: every method is called by every rank."""

    plan: TrialPlan
    runtime: Runtime
    data: Dataset
    task: Task

    @staticmethod
    def of(plan: TrialPlan, runtime: Runtime) -> Measures:
        """Load the data and the task of a plan."""
        return Measures(plan=plan, runtime=runtime, data=trial_data(plan), task=trial_task(plan))

    def common(self, state: TrialState) -> dict[str, Any]:
        """Return the fields that every phase record holds: held-out numbers, FLOPs, heads and parameters."""
        measured = self.held_out(state)
        tokens = self.tokens_of_an_example(state)
        return {
            "loss": measured.loss,
            "perplexity": perplexity(measured.loss),
            "accuracy": measured.accuracy,
            "metrics": measured.metrics,
            "flops_per_token": flops_per_token(state.model, state.head_map, tokens, predicted=self.task.predicted),
            **self.shape(state),
        }

    def shape(self, state: TrialState) -> dict[str, Any]:
        """Return the head map, the number of present heads, and the parameters without absent ones."""
        return {
            "active_heads": state.head_map.active,
            "head_map": state.head_map.to_lists(),
            "params": active_parameters(state.model, state.head_map),
        }

    def held_out(self, state: TrialState) -> HeldOut:
        """Return the held-out numbers of the model as it stands."""
        # In batches of the training batch size, which is part of the phase key: with batches of another size the
        # numbers differ in their last bits.
        batches = shared_batches(self.data.evaluation, self.plan.training["batch_size"], self.task, self.runtime)
        classes = self.data.facts.num_classes or 0
        return evaluate(state.model, batches, self.runtime, self.plan.training["precision"], classes)

    def inference(self, state: TrialState, spec: InferSpec) -> dict[str, Any]:
        """Return held-out numbers with early exits: of the half that the search sees, and `reported`, of the other."""
        # Absent heads are taken out once, for both halves.
        network, examples = present_network(state), self.data.evaluation
        halves = [
            measure_inference(
                network,
                seeded_batches(examples, half, self.plan.training["batch_size"], self.task, self.runtime),
                rule_of(spec),
                steps=spec.steps,
                min_steps=spec.min_steps,
                runtime=self.runtime,
                precision=self.plan.training["precision"],
            ).numbers
            for half in halves_of(len(examples))
        ]
        return {**halves[0], "reported": halves[1]}

    def samples(self, state: TrialState) -> list[dict[str, Any]]:
        """Return continuations of held-out prompts, written by rank 0."""
        # A few prompts are not worth sharing out; the other ranks wait for the result.
        found: list[dict[str, Any]] = self.runtime.from_rank_0(self._written(state) if self.runtime.rank == 0 else None)
        return found

    def head_meter(self) -> HeadMeter:
        """Return the meter of head statistics on the probe, which is the first training examples."""
        # Training examples, not held-out ones: scores choose the heads to remove, and the held-out loss measures how
        # good that choice was.
        probed = self.data.train[: self.plan.data["probe_windows"]]
        batches = shared_batches(probed, PROBE_BATCH, self.task, self.runtime)
        return HeadMeter(batches=batches, runtime=self.runtime, causal=self.task.causal)

    def step_flops(self, state: TrialState, head_map: HeadMap) -> float:
        """Return the FLOPs of a training step of all ranks together, with the heads of a head map present."""
        tokens = self.tokens_of_an_example(state)
        # In training a network may predict from several steps, which evaluation does not.
        per_token = flops_per_token(state.model, head_map, tokens, predicted=self.task.predicted, training=True)
        return TRAINING_TO_FORWARD * per_token * tokens * self.plan.training["batch_size"]

    def dense_step_flops(self, state: TrialState) -> float:
        """Return the FLOPs of a training step with every head present."""
        return self.step_flops(state, HeadMap.full(*state.model.shape))

    def tokens_of_an_example(self, state: TrialState) -> int:
        """Return the positions in one example: tokens of a window, or patches of an image."""
        return positions(state.model, self.plan.data["seq_len"])

    def _written(self, state: TrialState) -> list[dict[str, Any]]:
        assert self.data.tokenizer is not None
        return write_samples(state.model, self.data.evaluation, self.data.tokenizer(), self.runtime)
