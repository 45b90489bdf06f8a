"""What is measured of a trial's model: on held-out examples, on the probe, and by counting; equally in every phase."""

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
from raysweep.trial.measures.evaluation import HeldOut, evaluate, shared_batches, write_samples
from raysweep.trial.measures.inference import halves_of, measure_inference, present_network, rule_of, seeded_batches
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState

PROBE_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measures the model of one trial, on all ranks together."""

    plan: TrialPlan
    runtime: Runtime
    data: Dataset
    task: Task

    @staticmethod
    def of(plan: TrialPlan, runtime: Runtime) -> Measures:
        return Measures(plan=plan, runtime=runtime, data=trial_data(plan), task=trial_task(plan))

    def common(self, state: TrialState) -> dict[str, Any]:
        """Return what the record of every phase says."""
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
        """Return which heads are there, and how many parameters with them."""
        return {
            "active_heads": state.head_map.active,
            "head_map": state.head_map.to_lists(),
            "params": active_parameters(state.model, state.head_map),
        }

    def held_out(self, state: TrialState) -> HeldOut:
        batches = shared_batches(self.data.evaluation, self.plan.training["batch_size"], self.task, self.runtime)
        classes = self.data.facts.num_classes or 0
        return evaluate(state.model, batches, self.runtime, self.plan.training["precision"], classes)

    def inference(self, state: TrialState, spec: InferSpec) -> dict[str, Any]:
        """Measure with tokens leaving: what the search sees on one half of the held-out examples, beside the other."""
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
        """Let rank 0 continue held-out prompts."""
        found: list[dict[str, Any]] = self.runtime.from_rank_0(self._written(state) if self.runtime.rank == 0 else None)
        return found

    def examiner(self) -> HeadMeter:
        """Return what measures heads, on the probe: the first training examples."""
        probed = self.data.train[: self.plan.data["probe_windows"]]
        batches = shared_batches(probed, PROBE_BATCH, self.task, self.runtime)
        return HeadMeter(batches=batches, runtime=self.runtime, causal=self.task.causal)

    def step_flops(self, state: TrialState, head_map: HeadMap) -> float:
        """Return what a training step takes on some heads."""
        tokens = self.tokens_of_an_example(state)
        per_token = flops_per_token(state.model, head_map, tokens, predicted=self.task.predicted, training=True)
        return TRAINING_TO_FORWARD * per_token * tokens * self.plan.training["batch_size"]

    def dense_step_flops(self, state: TrialState) -> float:
        """Return what a training step would take with every head there."""
        return self.step_flops(state, HeadMap.full(*state.model.shape))

    def tokens_of_an_example(self, state: TrialState) -> int:
        return positions(state.model, self.plan.data["seq_len"])

    def _written(self, state: TrialState) -> list[dict[str, Any]]:
        assert self.data.tokenizer is not None
        return write_samples(state.model, self.data.evaluation, self.data.tokenizer(), self.runtime)
