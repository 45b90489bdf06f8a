"""Run the phases of one trial: each acts, is measured, and leaves an outcome in the phase store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from raysweep import registry
from raysweep.contracts import Array, Mask, Task
from raysweep.core.acts import Examiner, grow, prune
from raysweep.core.data import BatchOrder, Tokens, TokenStore, prepare, windows_of
from raysweep.core.evaluation import evaluate, shared_batches, write_samples
from raysweep.core.networks import task_of, tokenizer_source
from raysweep.core.runtime import Runtime
from raysweep.core.state import TrialState
from raysweep.core.store import Outcome, Partial, PhaseStore
from raysweep.core.training import Schedule, Training
from raysweep.plan import TRAINING_PHASES, PhasePlan, TrialPlan, derived_seed
from raysweep.plasticity.accounting import active_parameters, flops_per_token
from raysweep.plasticity.budget import share
from raysweep.plasticity.parity import check_parity
from raysweep.plasticity.ranking import agreement
from raysweep.plasticity.surgery import present_slices
from raysweep.records import PhaseRecord, perplexity
from raysweep.spec import DataSpec, ModelSpec

PROBE_BATCH = 4
MEASURED = (
    "taylor", "fisher", "signed_taylor", "entropy", "sink_mass", "sink_free_entropy", "output_norm",
    "magnitude", "magnitude_ov", "magnitude_qk",
)  # fmt: skip
MEASURED_ON_DEMAND = ("contribution",)
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
def _cached_data(data: DataSpec, model: ModelSpec) -> TokenStore:
    tokenizer, vocab_size = tokenizer_source(model, data)
    return prepare(data, tokenizer=tokenizer, vocab_size=vocab_size)


def trial_data(plan: TrialPlan) -> TokenStore:
    """Return the tokens of a trial's corpus, prepared once a process."""
    return _cached_data(DataSpec(**plan.data), ModelSpec(**plan.model))


def trial_task(plan: TrialPlan) -> Task:
    """Return what a trial's model learns."""
    return registry.build("tasks", task_of(ModelSpec(**plan.model)))


@dataclass(kw_only=True)
class _Trial:
    """One trial on its way through its phases."""

    plan: TrialPlan
    runtime: Runtime
    store: PhaseStore
    data: TokenStore
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
        held_out = self._windows(self.data.evaluation, self.plan.data["eval_tokens"])
        batches = shared_batches(held_out, self.plan.training["batch_size"], self.task, self.runtime)
        measured = evaluate(state.model, batches, self.runtime, self.plan.training["precision"])
        if phase.kind in ("baseline", "measure", "learn") and self.task.causal:
            found["samples"] = self.runtime.from_rank_0(self._samples(state) if self.runtime.rank == 0 else None)
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
            flops_per_token=flops_per_token(state.model, state.head_map, self.plan.data["seq_len"]),
            steps=phase.steps,
            tokens=phase.steps * self.plan.training["batch_size"] * self.plan.data["seq_len"],
            seconds=time.perf_counter() - started,
            data_sha256=self.data.text_sha256,
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
                self.state = TrialState.first(self.plan, self.data.vocab_size, self.runtime)
            else:
                self.state = TrialState.restored(
                    self.plan, self.previous, self.store, self.data.vocab_size, self.runtime
                )
        return self.state

    # Phases: each takes the state, changes it, and returns what its record says beyond the common measures.

    def _baseline(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        first_examples = self._windows(self.data.train)[: 2 * self.runtime.world_size]
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
        statistics = self._examiner().statistics(
            state, requires=MEASURED_ON_DEMAND if phase.params["contribution"] else ()
        )
        found = {name: getattr(statistics, name) for name in (*MEASURED, *MEASURED_ON_DEMAND)}
        found = {name: scores for name, scores in found.items() if scores is not None}
        rows = {name: _or_none(scores, statistics.present) for name, scores in found.items()}
        if statistics.contribution is None:
            return {"statistics": rows}
        truth = found.pop("contribution")
        agreements = {name: agreement(scores, truth, statistics.present) for name, scores in found.items()}
        return {"statistics": rows, "agreement": agreements}

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
        windows = self._windows(self.data.train)
        training = Training(
            state=state,
            schedule=Schedule(**{name: phase.params[name] for name in names if name in phase.params}),
            examples=windows,
            task=self.task,
            order=BatchOrder(
                num_windows=len(windows),
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
        windows = self._windows(self.data.train)[: self.plan.data["probe_windows"]]
        return Examiner(batches=shared_batches(windows, PROBE_BATCH, self.task, self.runtime), runtime=self.runtime)

    def _samples(self, state: TrialState) -> list[dict[str, Any]]:
        return write_samples(state.model, self._windows(self.data.evaluation), self.data.tokenizer(), self.runtime)

    def _windows(self, tokens: Tokens, limit: int | None = None) -> Tokens:
        return windows_of(tokens[:limit], self.plan.data["seq_len"])

    def _removed_in(self, cycle: int) -> int:
        prune = next(phase for phase in self.plan.phases if (phase.kind, phase.cycle) == ("prune", cycle))
        outcome = self.store.find(prune.key)
        assert outcome is not None
        return len(outcome.record["decision"]["heads"])


def _or_none(scores: Array, present: Mask) -> list[list[float | None]]:
    rows = zip(scores.tolist(), present.tolist(), strict=True)
    return [[score if here else None for score, here in zip(*row, strict=True)] for row in rows]
