"""Run the phases of one trial: each acts, is measured, and leaves an outcome in the phase store."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from raysweep.contracts import raise_unless_go
from raysweep.contracts.events import Event, PhaseClaimed, Warned
from raysweep.job.cycle import InferSpec
from raysweep.job.plan import TRAINING_PHASES, PhasePlan, TrialPlan
from raysweep.networks.plasticity.parity import check_parity
from raysweep.records.schema import PhaseRecord
from raysweep.trial.acts import grow, measure, prune, regrown
from raysweep.trial.data.trial_data import trial_held_out_sha256
from raysweep.trial.judged import JudgedProgress
from raysweep.trial.measures.evaluation import shared_batches
from raysweep.trial.measures.measures import Measures
from raysweep.trial.runtime import Runtime
from raysweep.trial.state import TrialState
from raysweep.trial.steps import run_in_order
from raysweep.trial.store.phase_store import PhaseOutcome, PhaseStore
from raysweep.trial.training.continuous import Events
from raysweep.trial.training.phase_training import PhaseTraining


def run_trial(plan: TrialPlan, runtime: Runtime, store: PhaseStore) -> Generator[PhaseRecord, None, None]:
    """Yield the record of each phase, run now or taken from the store; the same on every rank.

    The order is that of `steps.run_in_order`.

    Raises:
        TrialError: a phase of its own cannot be carried out as asked; DivergedError: a loss is not finite.
        Interrupted: the sweep's decision is that the trial shall not go on, or not here.
        DiskFullError: the store cannot be written; what is in it is whole.
    """
    runner = _TrialRunner.of(plan, runtime, store)
    yield from run_in_order(plan, runner, JudgedProgress(plan=plan, ask=runtime.ask))


def run_again(plan: TrialPlan, key: str, runtime: Runtime, store: PhaseStore) -> None:
    """Run a phase of a trial again, and those before it, as far as the store has lost them; the same on every rank.

    No stopping rule is asked, and nothing is reported: the trial has had its answers.

    Raises:
        TrialError: a phase cannot be carried out as asked.
        DiskFullError: the store cannot be written; what is in it is whole.
    """
    _TrialRunner.of(plan, runtime, store).regain(key, moments=False)


@dataclass(kw_only=True)
class _TrialRunner:
    """Runs the phases of one trial on the ranks of a group."""

    plan: TrialPlan
    runtime: Runtime
    store: PhaseStore
    measures: Measures
    state: TrialState | None = None
    """None until a phase has to be run: a trial found whole in the store never builds a model."""
    previous: str | None = None
    """Key of the phase whose outcome the next phase begins with; None at the start of an arm."""
    arm: str = "main"
    to_train: bool = True
    """Whether the state is trained on before it is thrown away, and so needs the optimizer's."""
    judged: JudgedProgress | None = None
    """Reports the present phase's evaluations; None in control arms."""

    @staticmethod
    def of(plan: TrialPlan, runtime: Runtime, store: PhaseStore) -> _TrialRunner:
        runner = _TrialRunner(plan=plan, runtime=runtime, store=store, measures=Measures.of(plan, runtime))
        store.warn = runner.warn
        return runner

    def post(self, event: Event) -> None:
        """Hand an event to the sweep, once for all ranks."""
        if self.runtime.rank == 0:
            self.runtime.emit(event)

    def warn(self, text: str) -> None:
        """Warn the user of the sweep."""
        self.post(Warned(trial=self.plan.trial, text=text))

    def begin_arm(self, arm: str) -> None:
        """Start a control arm: no state, no previous phase."""
        self.arm, self.state, self.previous = arm, None, None

    def skip(self, phase: PhasePlan) -> None:
        """Go on behind a phase whose outcome is in the store."""
        self.state, self.previous = None, phase.key

    def run(self, phase: PhasePlan, judged: JudgedProgress | None) -> Generator[PhaseRecord, None, PhaseRecord]:
        """Yield the record of a phase, and return it."""
        record = self.record_of(phase, judged)
        yield record
        return record

    def record_of(self, phase: PhasePlan, judged: JudgedProgress | None = None) -> PhaseRecord:
        """Return a phase's record; run the phase if it is not in the store.

        Raises:
            Interrupted: the sweep's decision, before the phase or within.
        """
        started = time.perf_counter()
        self.judged = judged
        outcome = self._found(phase)
        if outcome is None:
            raise_unless_go(self.runtime.ask(PhaseClaimed(trial=self.plan.trial, key=phase.key)))
            outcome = self._run_once(phase, started)
        else:
            # Stale: the state in memory is that before the phase. The next phase that is run restores it anew.
            self.state = None
        self.previous = phase.key
        record = {
            **outcome.record,
            "trial": self.plan.trial,
            "arm": self.arm,
            "reused": outcome.trial != self.plan.trial,
            "seconds": round(time.perf_counter() - started, 4),
        }
        return PhaseRecord.from_dict(record)

    def _found(self, phase: PhasePlan) -> PhaseOutcome | None:
        # Rank 0 alone looks: on a shared disk another rank might see a phase later, and the ranks would part.
        found: PhaseOutcome | None = self.runtime.from_rank_0(
            self.store.find(phase.key) if self.runtime.rank == 0 else None
        )  # fmt: skip
        return found

    def _run_once(self, phase: PhasePlan, started: float) -> PhaseOutcome:
        """Run a phase, unless another trial has done so while its lease was waited for."""
        # A claim orders the trials of one sweep; the lease also keeps out a group that was given up for lost.
        with self.store.lease(phase.key) if self.runtime.rank == 0 else nullcontext():
            outcome = self._found(phase)
            if outcome is None:
                outcome = self._run(phase, started)
                self._save(phase, outcome)
            else:
                self.state = None
            # Rank 0 keeps the lease until all ranks are through with what it protects.
            self.runtime.barrier()
        return outcome

    def _run(self, phase: PhasePlan, started: float) -> PhaseOutcome:
        state = self._state()
        found = getattr(self, f"_{phase.kind}")(state, phase)
        state.history.append(phase.key)
        # Not the same object in a from_scratch_small arm: its small model has taken the place of the one before.
        state = self._state()
        measures = self.measures
        measured = measures.shape(state) if phase.kind == "infer" else measures.common(state)
        if phase.kind in ("baseline", "measure", "learn") and measures.task.causal:
            found["samples"] = measures.samples(state)
        record = PhaseRecord(
            trial=self.plan.trial,
            phase=phase.kind,
            cycle=phase.cycle,
            key=phase.key,
            reused=False,
            steps=phase.steps,
            tokens=phase.steps * self.plan.training["batch_size"] * measures.tokens_of_an_example(state),
            seconds=time.perf_counter() - started,
            data_sha256=measures.data.content_sha256,
            held_out_sha256=trial_held_out_sha256(self.plan),
            **measured,
            **found,
        )
        return state.outcome(self.plan.trial, record.to_dict())

    def _save(self, phase: PhasePlan, outcome: PhaseOutcome) -> None:
        # Only training stores all weights. Pruning and growth store the slices that they changed: with the weights of
        # the last training phase they give the state, at a fraction of the bytes.
        state = self._state()
        trained = phase.kind in TRAINING_PHASES and phase.steps
        slices = state.changed_slices() if phase.kind in ("prune", "grow") else None
        self.runtime.write(lambda: self.store.save(phase.key, outcome, state.tensors() if trained else None, slices))

    def _state(self) -> TrialState:
        if self.state is None:
            if self.previous is None:
                self.state = TrialState.first(self.plan, self.measures.data.facts, self.runtime)
            else:
                self.regain(self.previous, moments=self.to_train)
                self.state = TrialState.restored(
                    self.plan, self.previous, self.store, self.measures.data.facts, self.runtime
                )
        return self.state

    def regain(self, key: str, *, moments: bool) -> None:
        """Run again whatever the state after a phase needs and the store has no more; `moments` as in `missing`."""
        # `missing` names the latest lost phase. To run that one again restores the state before it, which comes here
        # for the phases lost before.
        while (lost := self._missing(key, moments)) is not None:
            self._run_again(lost)

    def _missing(self, key: str, moments: bool) -> str | None:
        leads = self.runtime.rank == 0
        found: str | None = self.runtime.from_rank_0(self.store.missing(key, moments=moments) if leads else None)
        return found

    def _run_again(self, key: str) -> None:
        """Run a phase once more whose weights are no longer in the store.

        A trial that holds the lease of a phase takes leases of earlier phases only, so no trials wait in a circle.
        """
        leads, before, judged, to_train = self.runtime.rank == 0, self.previous, self.judged, self.to_train
        chains = (self.plan.phases, *self.plan.controls.values())
        chain, at = next((chain, at) for chain in chains for at, phase in enumerate(chain) if phase.key == key)
        # Its evaluations were reported when it ran first. The state is thrown away behind it, so that it needs the
        # optimizer's only if it trains itself.
        self.judged, self.to_train = None, chain[at].steps > 0
        with self.store.lease(key) if leads else nullcontext():
            # Another trial may have run it again while this one waited for the lease.
            if self._missing(key, moments=True) == key:
                self.warn(f"phase {chain[at].label} ({key}) is run again: its weights are no longer in the store.")
                self.previous = chain[at - 1].key if at else None
                outcome = self._run(chain[at], time.perf_counter())
                # The phase still belongs to the trial that ran it first: that one's records say `reused: false`.
                earlier = self.store.find(key)
                self._save(chain[at], replace(outcome, trial=earlier.trial) if earlier else outcome)
            self.runtime.barrier()
        self.state, self.previous, self.judged, self.to_train = None, before, judged, to_train

    # Kinds of phases: each changes the state, and returns what its record holds beyond the common measures.

    def _baseline(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        if "shaped_by" in phase.params:
            state = self.state = self._small_model(phase.params["shaped_by"])
        # Before anything is trained: with gates that do not do what they should, every later number would be wrong.
        task, first_examples = self.measures.task, self.measures.data.train[: 2 * self.runtime.world_size]
        (batch,) = shared_batches(first_examples, 2, task, self.runtime)
        check_parity(state.model, batch, causal=task.causal)
        if not phase.steps:
            return {}
        return self._train(state, phase)

    def _prune(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        found = prune(state, phase.params, cycle=phase.cycle, key=phase.key, meter=self.measures.head_meter())
        state.refresh()
        return found

    def _measure(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        return measure(state, self.measures.head_meter(), contribution=phase.params["contribution"])

    def _grow(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        found = grow(state, phase.params, cycle=phase.cycle, key=phase.key, meter=self.measures.head_meter())
        state.refresh()
        before = [self._stored(key).record for key in state.history]
        return {**found, "regrown": regrown(found["decision"], phase.cycle, phase.params["init"], before)}

    def _small_model(self, shaped_by: str) -> TrialState:
        """Build the model with new weights and, in each layer, as many heads as an earlier phase left there."""
        shape = self._stored(shaped_by)
        state = TrialState.first(self.plan, self.measures.data.facts, self.runtime, new_weights=True)
        counts = [sum(grown >= 0 for grown in row) for row in shape.record["head_map"]]
        _, heads = state.model.shape
        state.remove_heads([(layer, head) for layer, kept in enumerate(counts) for head in range(kept, heads)], None)
        state.refresh()
        return state

    def _learn(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        events = Events(
            state=state,
            planned=phase.params.get("events", []),
            meter=self.measures.head_meter(),
            measure=lambda: self.measures.common(state),
            seed_second_moments=phase.params["seed_second_moments"],
        )
        if phase.params["seed_second_moments"]:
            state.seed_second_moments()
        return {**self._train(state, phase, events), "events": events.done or None}

    def _infer(self, state: TrialState, phase: PhasePlan) -> dict[str, Any]:
        return self.measures.inference(state, InferSpec(**phase.params))

    def _train(self, state: TrialState, phase: PhasePlan, events: Events | None = None) -> dict[str, Any]:
        training = PhaseTraining(
            phase=phase, arm=self.arm, state=state, measures=self.measures, store=self.store, judged=self.judged,
            events=events,
        )  # fmt: skip
        return training.run()

    def _stored(self, key: str) -> PhaseOutcome:
        outcome = self.store.find(key)
        assert outcome is not None, f"phase {key} is not in the store"
        return outcome
