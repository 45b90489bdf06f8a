"""Run the phases of one trial: each acts, is measured, and leaves an outcome in the phase store."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from raysweep.contracts import GO, Decision, Task
from raysweep.core.acts import Examiner, grow, measure, prune
from raysweep.core.continuous import Events
from raysweep.core.data import BatchOrder
from raysweep.core.evaluation import Measured, evaluate, held_out_sha256, shared_batches, write_samples
from raysweep.core.examples import Dataset, build_task, load_dataset
from raysweep.core.inference import halves_of, measure_inference, present_network, rule_of, seeded_batches
from raysweep.core.runtime import Runtime
from raysweep.core.state import TrialState
from raysweep.core.store import Outcome, Partial, PhaseStore
from raysweep.core.training import Schedule, Training
from raysweep.core.trajectory import Trajectory
from raysweep.decisions import foremost, obey
from raysweep.errors import DiskFullError, TrialError
from raysweep.halting import reached, result, verdict
from raysweep.judged import Judged
from raysweep.plan import TRAINING_PHASES, PhasePlan, TrialPlan, derived_seed
from raysweep.plasticity.accounting import TRAINING_TO_FORWARD, active_parameters, flops_per_token, positions
from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.parity import check_parity
from raysweep.records import PhaseRecord, perplexity
from raysweep.spec import DataSpec, InferSpec, ModelSpec

PROBE_BATCH = 4
UNLOGGED = "progress/unlogged"


def run_trial(plan: TrialPlan, runtime: Runtime, store: PhaseStore) -> Iterator[PhaseRecord]:
    """Yield the record of each phase, run now or taken from the store; the same on every rank.

    First the trial's own phases, until the last or until it halts; then those that its control arms have beside them.
    An arm that cannot be carried out says so, and ends no trial.

    Raises:
        TrialError: a phase of its own cannot be carried out as asked; DivergedError: a loss is not finite.
        Interrupted: the sweep says that the trial shall not go on, or not here.
        DiskFullError: the store cannot be written; what is in it is whole.
    """
    trial = _Trial.of(plan, runtime, store)
    judged = Judged(plan=plan, ask=runtime.ask)
    own: list[PhaseRecord] = []
    for phase in plan.phases:
        own.append(trial.record_of(phase, judged))
        yield own[-1]
        decision = judged.finished(phase, own[-1])
        if verdict(own, plan.halting) or phase is plan.phases[-1]:
            break
        obey(decision)
    kept, _ = result(own, plan.halting)
    seen = {record.key for record in own}
    for arm, phases in plan.controls.items():
        trial.begin(arm)
        try:
            for phase in reached(arm, phases, kept.cycle):
                if phase.key in seen:
                    trial.pass_over(phase)
                else:
                    yield trial.record_of(phase)
        except TrialError as error:  # raised by all ranks alike: it follows from all-reduced numbers
            if runtime.rank == 0:
                runtime.emit({"type": "control_failed", "trial": plan.trial, "arm": arm, "error": str(error)})


@lru_cache(maxsize=4)
def _cached_data(data: DataSpec, model: ModelSpec) -> Dataset:
    return load_dataset(data, model)


def trial_data(plan: TrialPlan) -> Dataset:
    """Return the examples of a trial, prepared once a process."""
    return _cached_data(DataSpec(**plan.data), ModelSpec(**plan.model))


def trial_task(plan: TrialPlan) -> Task:
    """Return what a trial's model learns."""
    return build_task(ModelSpec(**plan.model), trial_data(plan).facts)


@lru_cache(maxsize=4)
def _held_out_sha256(data: DataSpec, model: ModelSpec) -> str:
    """Hash what every evaluation shows and asks, once a process: every held-out example is drawn for it."""
    dataset = _cached_data(data, model)
    return held_out_sha256(dataset.evaluation, build_task(model, dataset.facts))


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
    arm: str = "main"
    flops_of_heads: tuple[HeadMap | None, float] = (None, 0.0)
    """The head map of the last step, and what a step takes with it."""
    judged: Judged | None = None
    """Reports the present phase's evaluations; None in control arms."""

    @staticmethod
    def of(plan: TrialPlan, runtime: Runtime, store: PhaseStore) -> _Trial:
        trial = _Trial(plan=plan, runtime=runtime, store=store, data=trial_data(plan), task=trial_task(plan))
        store.warn = trial.warn
        return trial

    def warn(self, text: str) -> None:
        if self.runtime.rank == 0:
            self.runtime.emit({"type": "warning", "trial": self.plan.trial, "text": text})

    def begin(self, arm: str) -> None:
        """Stand before the first phase of a control arm."""
        self.arm, self.state, self.previous = arm, None, None

    def pass_over(self, phase: PhasePlan) -> None:
        """Stand behind a phase that is in the store."""
        self.state, self.previous = None, phase.key

    def record_of(self, phase: PhasePlan, judged: Judged | None = None) -> PhaseRecord:
        """Return a phase's record; run the phase if no one has.

        Raises:
            Interrupted: the sweep says so, before the phase or within.
        """
        started = time.perf_counter()
        self.judged = judged
        outcome = self._found(phase)
        if outcome is None:
            obey(self.runtime.ask({"type": "claim", "trial": self.plan.trial, "key": phase.key}))
            outcome = self._run_once(phase, started)
        else:
            self.state = None  # the store is ahead of it
        self.previous = phase.key
        record = {
            **outcome.record,
            "trial": self.plan.trial,
            "arm": self.arm,
            "reused": outcome.trial != self.plan.trial,
            "seconds": round(time.perf_counter() - started, 4),
        }
        return PhaseRecord.from_dict(record)

    def _found(self, phase: PhasePlan) -> Outcome | None:
        found: Outcome | None = self.runtime.from_rank_0(
            self.store.find(phase.key) if self.runtime.rank == 0 else None
        )  # fmt: skip
        return found

    def _run_once(self, phase: PhasePlan, started: float) -> Outcome:
        """Run a phase, unless someone else has done so while its lease was waited for."""
        with self.store.lease(phase.key) if self.runtime.rank == 0 else nullcontext():
            outcome = self._found(phase)
            if outcome is None:
                outcome = self._run(phase, started)
                self._save(phase, outcome)
            else:
                self.state = None
            self.runtime.barrier()
        return outcome

    def _run(self, phase: PhasePlan, started: float) -> Outcome:
        state = self._state()
        found = getattr(self, f"_{phase.kind}")(state, phase)
        state.history.append(phase.key)
        state = self._state()  # a small model has taken the place of the one before
        measured = self._shape(state) if phase.kind == "infer" else self._measured(state)
        if phase.kind in ("baseline", "measure", "learn") and self.task.causal:
            found["samples"] = self.runtime.from_rank_0(self._samples(state) if self.runtime.rank == 0 else None)
        per_example = positions(state.model, self.plan.data["seq_len"])
        record = PhaseRecord(
            trial=self.plan.trial,
            phase=phase.kind,
            cycle=phase.cycle,
            key=phase.key,
            reused=False,
            steps=phase.steps,
            tokens=phase.steps * self.plan.training["batch_size"] * per_example,
            seconds=time.perf_counter() - started,
            data_sha256=self.data.content_sha256,
            held_out_sha256=_held_out_sha256(DataSpec(**self.plan.data), ModelSpec(**self.plan.model)),
            **measured,
            **found,
        )
        return state.outcome(self.plan.trial, record.to_dict())

    def _measured(self, state: TrialState) -> dict[str, Any]:
        """Measure what every phase is measured by."""
        measured = self._held_out(state)
        per_example = positions(state.model, self.plan.data["seq_len"])
        return {
            "loss": measured.loss,
            "perplexity": perplexity(measured.loss),
            "accuracy": measured.accuracy,
            "metrics": measured.metrics,
            "flops_per_token": flops_per_token(state.model, state.head_map, per_example, predicted=self.task.predicted),
            **self._shape(state),
        }

    def _shape(self, state: TrialState) -> dict[str, Any]:
        return {
            "active_heads": state.head_map.active,
            "head_map": state.head_map.to_lists(),
            "params": active_parameters(state.model, state.head_map),
        }

    def _held_out(self, state: TrialState) -> Measured:
        batches = shared_batches(self.data.evaluation, self.plan.training["batch_size"], self.task, self.runtime)
        classes = self.data.facts.num_classes or 0
        return evaluate(state.model, batches, self.runtime, self.plan.training["precision"], classes)

    def _step_flops(self, state: TrialState) -> float:
        """Return what a training step takes on the present heads."""
        if self.flops_of_heads[0] is not state.head_map:
            self.flops_of_heads = (state.head_map, self._flops_of(state, state.head_map))
        return self.flops_of_heads[1]

    def _dense_step_flops(self, state: TrialState) -> float:
        return self._flops_of(state, HeadMap.full(*state.model.shape))

    def _flops_of(self, state: TrialState, head_map: HeadMap) -> float:
        tokens = positions(state.model, self.plan.data["seq_len"])
        per_token = flops_per_token(state.model, head_map, tokens, predicted=self.task.predicted, training=True)
        return TRAINING_TO_FORWARD * per_token * tokens * self.plan.training["batch_size"]

    def _save(self, phase: PhasePlan, outcome: Outcome) -> None:
        state = self._state()
        trained = phase.kind in TRAINING_PHASES and phase.steps
        slices = state.changed_slices() if phase.kind in ("prune", "grow") else None
        self._write(lambda: self.store.save(phase.key, outcome, state.tensors() if trained else None, slices))

    def _write(self, write: Callable[[], None]) -> None:
        """Let rank 0 write into the store; the others wait.

        Raises:
            DiskFullError: on all ranks alike, so that none waits for one that is gone.
        """
        full: str | None = None
        if self.runtime.rank == 0:
            try:
                write()
            except DiskFullError as error:
                full = str(error)
        full = self.runtime.from_rank_0(full)
        if full is not None:
            raise DiskFullError(full)

    def _state(self) -> TrialState:
        if self.state is None:
            if self.previous is None:
                self.state = TrialState.first(self.plan, self.data.facts, self.runtime)
            else:
                while (lost := self._missing(self.previous)) is not None:
                    self._run_again(lost)
                self.state = TrialState.restored(self.plan, self.previous, self.store, self.data.facts, self.runtime)
        return self.state

    def _missing(self, key: str) -> str | None:
        found: str | None = self.runtime.from_rank_0(self.store.missing(key) if self.runtime.rank == 0 else None)
        return found

    def _run_again(self, key: str) -> None:
        """Run a phase once more whose weights the store does not hold any more.

        Leases are taken from a phase to those before it only, so nobody waits in a circle.
        """
        leads, before, judged = self.runtime.rank == 0, self.previous, self.judged
        self.judged = None  # its evaluations were reported when it ran first
        chains = (self.plan.phases, *self.plan.controls.values())
        chain, at = next((chain, at) for chain in chains for at, phase in enumerate(chain) if phase.key == key)
        with self.store.lease(key) if leads else nullcontext():
            if self._missing(key) == key:  # nobody else has run it meanwhile
                self.warn(f"phase {chain[at].label} ({key}) is run again: its weights are no longer in the store.")
                self.previous = chain[at - 1].key if at else None
                outcome = self._run(chain[at], time.perf_counter())
                earlier = self.store.find(key)
                self._save(chain[at], replace(outcome, trial=earlier.trial) if earlier else outcome)
            self.runtime.barrier()
        self.state, self.previous, self.judged = None, before, judged

    # Phases: each takes the state, changes it, and returns what its record says beyond the common measures.

    def _baseline(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        if "shaped_by" in phase.params:
            state = self.state = self._small_model(phase.params["shaped_by"])
        first_examples = self.data.train[: 2 * self.runtime.world_size]
        (batch,) = shared_batches(first_examples, 2, self.task, self.runtime)
        check_parity(state.model, batch, causal=self.task.causal)
        if not phase.steps:
            return {}
        return self._train(state, phase)

    def _prune(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        decision = prune(state, phase.params, cycle=phase.cycle, key=phase.key, examiner=self._examiner())
        state.refresh()
        return {"decision": decision}

    def _measure(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        return measure(state, self._examiner(), contribution=phase.params["contribution"])

    def _grow(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        decision = grow(state, phase.params, cycle=phase.cycle, key=phase.key, examiner=self._examiner())
        state.refresh()
        return {"decision": decision, "regrown": self._regrown(decision, phase)}

    def _small_model(self, shaped_by: str) -> TrialState:
        """Build the model with new weights and, in each layer, as many heads as an earlier phase left there."""
        shape = self.store.find(shaped_by)
        assert shape is not None, f"phase {shaped_by} is not in the store"
        state = TrialState.first(self.plan, self.data.facts, self.runtime, new_weights=True)
        counts = [sum(grown >= 0 for grown in row) for row in shape.record["head_map"]]
        _, heads = state.model.shape
        state.remove_heads([(layer, head) for layer, kept in enumerate(counts) for head in range(kept, heads)], None)
        state.refresh()
        return state

    def _learn(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        events = Events(
            state=state,
            planned=phase.params.get("events", []),
            examiner=self._examiner(),
            measure=lambda: self._measured(state),
            seed_second_moments=phase.params["seed_second_moments"],
        )
        if phase.params["seed_second_moments"]:
            state.seed_second_moments()
        return {**self._train(state, phase, events), "events": events.done or None}

    def _infer(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        """Measure with tokens leaving: what the search sees on one half of the held-out examples, beside the other."""
        spec, network, examples = InferSpec(**phase.params), present_network(state), self.data.evaluation
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

    def _train(self, state: TrialState, phase: PhasePlan, events: Events | None = None) -> dict[str, Any]:
        names = Schedule.__dataclass_fields__
        schedule = Schedule(**{name: phase.params[name] for name in names if name in phase.params})
        every = phase.params.get("trajectory_every") or math.ceil(phase.steps / 4)
        trajectory = Trajectory(
            state=state,
            examiner=self._examiner(),
            gate=lambda step: schedule.gate(step, state.born),
            steps=phase.steps,
            every=every,
        )
        answers: list[Decision] = []  # to what was said since the last step

        def between_steps(step: int) -> None:
            if training.evaluations and training.evaluations[-1]["step"] == step:
                answers.append(self._report(phase, state, training.evaluations[-1]))
            decision = foremost(answers)
            answers.clear()
            if decision.action in ("pause", "leave") or step % self.plan.checkpoint_every_steps == 0:
                self._checkpoint(phase, training, trajectory, step, events)
            obey(decision)

        training = Training(
            state=state,
            schedule=schedule,
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
            on_point=lambda point: answers.append(self.runtime.ask(self._event("progress", phase, point=point))),
            on_step=trajectory.follow,
            evaluate=lambda: self._held_out(state).loss,
            evaluate_every=phase.params["evaluate_every"],
            step_flops=lambda: self._step_flops(state),
            between_steps=between_steps,
            before_step=events.happen if events else lambda step: None,
        )
        partial = self.store.find_partial(phase.key)
        start = partial.step if partial else 0
        self.runtime.assert_equal(start)
        if partial is not None:
            state.load_tensors(partial.tensors)
            training.curve, training.evaluations = partial.curve, partial.evaluations
            training.flops = partial.flops
            if events is not None:
                events.load(partial.structure, partial.tensors)
            trajectory.resume(partial.trajectory, partial.tensors)
            training.unlogged.copy_(partial.tensors[UNLOGGED][self.runtime.rank])
            if self.runtime.rank == 0:
                self.runtime.emit(self._event("resumed", phase, step=start))
        curve = training.run(start)
        return {
            "curve": curve,
            "evaluations": training.evaluations,
            "trajectory": trajectory.points,
            "training_flops": training.flops,
            "dense_training_flops": self._dense_step_flops(state) * phase.steps,
        }

    def _checkpoint(
        self, phase: PhasePlan, training: Training, trajectory: Trajectory, step: int, events: Events | None
    ) -> None:
        unlogged = self.runtime.all_gather(training.unlogged)

        def write() -> None:
            tensors = training.state.tensors() | {UNLOGGED: unlogged} | trajectory.tensors()
            partial = Partial(
                step=step,
                curve=training.curve,
                evaluations=training.evaluations,
                flops=training.flops,
                structure=events.structure() if events else {},
                tensors=tensors | (events.tensors() if events else {}),
                trajectory=trajectory.points,
            )
            self.store.save_partial(phase.key, partial)

        self._write(write)
        self.runtime.barrier()

    def _event(self, kind: str, phase: PhasePlan, **content: Any) -> dict[str, Any]:
        about = {"trial": self.plan.trial, "arm": self.arm, "phase": phase.kind, "cycle": phase.cycle}
        return {"type": kind, **about, "steps": phase.steps, **content}

    def _report(self, phase: PhasePlan, state: TrialState, point: dict[str, float]) -> Decision:
        if self.judged is None:
            return GO
        return self.judged.report(
            phase, int(point["step"]), loss=point["loss"], flops=point["training_flops"],
            dense_flops_per_step=self._dense_step_flops(state),
        )  # fmt: skip

    def _examiner(self) -> Examiner:
        probed = self.data.train[: self.plan.data["probe_windows"]]
        batches = shared_batches(probed, PROBE_BATCH, self.task, self.runtime)
        return Examiner(batches=batches, runtime=self.runtime, causal=self.task.causal)

    def _samples(self, state: TrialState) -> list[dict[str, Any]]:
        assert self.data.tokenizer is not None
        return write_samples(state.model, self.data.evaluation, self.data.tokenizer(), self.runtime)

    def _regrown(self, decision: dict[str, Any], phase: PhasePlan) -> list[dict[str, Any]]:
        """Say for each slot that came back when it had last been pruned."""
        assert self.state is not None
        pruned_in: dict[tuple[int, ...], int] = {}
        for key in self.state.history:
            outcome = self.store.find(key)
            assert outcome is not None, f"phase {key} is not in the store"
            if outcome.record["phase"] == "prune":
                heads = outcome.record["decision"]["heads"]
                pruned_in |= {tuple(slot): outcome.record["cycle"] for slot in heads}
        return [
            {"slot": slot, "pruned_in": pruned_in[tuple(slot)], "grown_in": phase.cycle, "init": phase.params["init"]}
            for slot in decision["heads"]
        ]
