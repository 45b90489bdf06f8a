"""Run the phases of one trial: each acts, is measured, and leaves an outcome in the phase store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from raysweep.contracts import Task
from raysweep.core.acts import Examiner, grow, prune
from raysweep.core.data import BatchOrder
from raysweep.core.evaluation import evaluate, shared_batches, write_samples
from raysweep.core.examples import Dataset, build_task, load_dataset
from raysweep.core.runtime import Runtime
from raysweep.core.state import TrialState
from raysweep.core.store import Outcome, Partial, PhaseStore
from raysweep.core.training import Schedule, Training
from raysweep.plan import TRAINING_PHASES, PhasePlan, TrialPlan, derived_seed
from raysweep.plasticity.accounting import active_parameters, flops_per_token, positions
from raysweep.plasticity.budget import share
from raysweep.plasticity.parity import check_parity
from raysweep.plasticity.surgery import present_slices
from raysweep.records import PhaseRecord, perplexity
from raysweep.spec import DataSpec, ModelSpec

PROBE_BATCH = 4
UNLOGGED = "progress/unlogged"


def run_trial(plan: TrialPlan, runtime: Runtime, store: PhaseStore) -> Iterator[PhaseRecord]:
    """Yield the record of each phase, run now or taken from the store; the same on every rank.

    Raises:
        TrialError: a phase cannot be carried out as asked; DivergedError: a loss is not finite.
    """
    trial = _Trial.of(plan, runtime, store)
    for phase in plan.phases:
        yield trial.record_of(phase)


@lru_cache(maxsize=4)
def _cached_data(data: DataSpec, model: ModelSpec) -> Dataset:
    return load_dataset(data, model)


def trial_data(plan: TrialPlan) -> Dataset:
    """Return the examples of a trial, prepared once a process."""
    return _cached_data(DataSpec(**plan.data), ModelSpec(**plan.model))


def trial_task(plan: TrialPlan) -> Task:
    """Return what a trial's model learns."""
    return build_task(ModelSpec(**plan.model), trial_data(plan).facts)


@dataclass(kw_only=True)
class _Trial:
    """One trial on its way through its phases."""

    plan: TrialPlan
    runtime: Runtime
    store: PhaseStore
    data: Dataset
    task: Task
    state: TrialState | None = None
    """None until a phase has to be run: a trial found whole in the store never builds a model."""
    previous: str | None = None

    @staticmethod
    def of(plan: TrialPlan, runtime: Runtime, store: PhaseStore) -> _Trial:
        return _Trial(plan=plan, runtime=runtime, store=store, data=trial_data(plan), task=trial_task(plan))

    def record_of(self, phase: PhasePlan) -> PhaseRecord:
        """Return a phase's record; run the phase if no one has."""
        started = time.perf_counter()
        leads = self.runtime.rank == 0
        with self.store.lease(phase.key) if leads else nullcontext():
            outcome: Outcome | None = self.runtime.from_rank_0(self.store.find(phase.key) if leads else None)
            if outcome is None:
                outcome = self._run(phase, started)
                if leads:
                    self._save(phase, outcome)
            else:
                self.state = None  # the store is ahead of it
            self.runtime.barrier()
        self.previous = phase.key
        record = {
            **outcome.record,
            "trial": self.plan.trial,
            "reused": outcome.trial != self.plan.trial,
            "seconds": round(time.perf_counter() - started, 4),
        }
        return PhaseRecord.from_dict(record)

    def _run(self, phase: PhasePlan, started: float) -> Outcome:
        state = self._state()
        found = getattr(self, f"_{phase.kind}")(state, phase)
        state.history.append(phase.key)
        batches = shared_batches(self.data.evaluation, self.plan.training["batch_size"], self.task, self.runtime)
        measured = evaluate(state.model, batches, self.runtime, self.plan.training["precision"])
        if phase.kind in ("baseline", "measure", "learn") and self.task.causal:
            found["samples"] = self.runtime.from_rank_0(self._samples(state) if self.runtime.rank == 0 else None)
        per_example = positions(state.model, self.plan.data["seq_len"])
        record = PhaseRecord(
            trial=self.plan.trial,
            phase=phase.kind,
            cycle=phase.cycle,
            key=phase.key,
            reused=False,
            loss=measured.loss,
            perplexity=perplexity(measured.loss),
            accuracy=measured.accuracy,
            active_heads=state.head_map.active,
            head_map=state.head_map.to_lists(),
            params=active_parameters(state.model, state.head_map),
            flops_per_token=flops_per_token(state.model, state.head_map, per_example),
            steps=phase.steps,
            tokens=phase.steps * self.plan.training["batch_size"] * per_example,
            seconds=time.perf_counter() - started,
            data_sha256=self.data.content_sha256,
            **found,
        )
        return state.outcome(self.plan.trial, record.to_dict())

    def _save(self, phase: PhasePlan, outcome: Outcome) -> None:
        assert self.state is not None
        trained = phase.kind in TRAINING_PHASES and phase.steps
        self.store.save(phase.key, outcome, self.state.tensors() if trained else None)

    def _state(self) -> TrialState:
        if self.state is None:
            if self.previous is None:
                self.state = TrialState.first(self.plan, self.data.facts, self.runtime)
            else:
                self.state = TrialState.restored(self.plan, self.previous, self.store, self.data.facts, self.runtime)
        return self.state

    # Phases: each takes the state, changes it, and returns what its record says beyond the common measures.

    def _baseline(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        first_examples = self.data.train[: 2 * self.runtime.world_size]
        (batch,) = shared_batches(first_examples, 2, self.task, self.runtime)
        check_parity(state.model, batch, causal=self.task.causal)
        if not phase.steps:
            return {}
        return {"curve": self._train(state, phase)}

    def _prune(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        decision = prune(state, phase.params, cycle=phase.cycle, key=phase.key, examiner=self._examiner())
        state.refresh()
        return {"decision": decision}

    def _measure(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        statistics = self._examiner().statistics(state)
        names = ("taylor", "entropy", "sink_mass", "output_norm", "magnitude")
        return {"statistics": {name: getattr(statistics, name).tolist() for name in names}}

    def _grow(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        count = share(phase.params["ratio"], self._removed_in(phase.cycle))
        decision = grow(state, phase.params, cycle=phase.cycle, count=count, key=phase.key, examiner=self._examiner())
        state.refresh()
        return {"decision": decision}

    def _learn(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        if phase.params["seed_second_moments"]:
            fresh = set(state.new_slices)
            peers = [part for part in present_slices(state.model.sites, state.head_map) if part not in fresh]
            state.optimizer.seed_second_moments(state.new_slices, peers)
        return {"curve": self._train(state, phase)}

    def _train(self, state: TrialState, phase: PhasePlan) -> list[dict[str, float]]:
        names = Schedule.__dataclass_fields__
        training = Training(
            state=state,
            schedule=Schedule(**{name: phase.params[name] for name in names if name in phase.params}),
            examples=self.data.train,
            task=self.task,
            order=BatchOrder(
                num_windows=len(self.data.train),
                batch_size=self.plan.training["batch_size"],
                # Of the trial's seed and not the key: arms that differ before this phase see the same data in it.
                seed=derived_seed(str(self.plan.seed), "batches", phase.kind, phase.cycle),
            ),
            training=self.plan.training,
            runtime=self.runtime,
            on_point=lambda point: self._emit("progress", phase, point=point),
            on_checkpoint=lambda step: self._checkpoint(phase, training, step),
            checkpoint_every=self.plan.checkpoint_every_steps,
        )
        partial = self.store.find_partial(phase.key)
        start = partial.step if partial else 0
        self.runtime.assert_equal(start)
        if partial is not None:
            state.load_tensors(partial.tensors)
            training.curve = partial.curve
            training.unlogged.copy_(partial.tensors[UNLOGGED][self.runtime.rank])
            self._emit("resumed", phase, step=start)
        return training.run(start)

    def _checkpoint(self, phase: PhasePlan, training: Training, step: int) -> None:
        unlogged = self.runtime.all_gather(training.unlogged)
        if self.runtime.rank == 0:
            tensors = training.state.tensors() | {UNLOGGED: unlogged}
            self.store.save_partial(phase.key, Partial(step=step, curve=training.curve, tensors=tensors))
        self.runtime.barrier()

    def _emit(self, kind: str, phase: PhasePlan, **content: Any) -> None:
        if self.runtime.rank == 0:
            about = {"trial": self.plan.trial, "phase": phase.kind, "cycle": phase.cycle, "steps": phase.steps}
            self.runtime.emit({"type": kind, **about, **content})

    def _examiner(self) -> Examiner:
        probed = self.data.train[: self.plan.data["probe_windows"]]
        return Examiner(batches=shared_batches(probed, PROBE_BATCH, self.task, self.runtime), runtime=self.runtime)

    def _samples(self, state: TrialState) -> list[dict[str, Any]]:
        assert self.data.tokenizer is not None
        return write_samples(state.model, self.data.evaluation, self.data.tokenizer(), self.runtime)

    def _removed_in(self, cycle: int) -> int:
        prune = next(phase for phase in self.plan.phases if (phase.kind, phase.cycle) == ("prune", cycle))
        outcome = self.store.find(prune.key)
        assert outcome is not None
        return len(outcome.record["decision"]["heads"])
