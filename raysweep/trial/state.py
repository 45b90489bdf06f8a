"""A trial between two phases: weights, optimizer, head map; built afresh, or restored from the phase store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raysweep.contracts import Array, Facts, Family, HeadSlice, Initializer, Slot
from raysweep.job.plan import TRAINING_PHASES, TrialPlan
from raysweep.job.spec import ModelSpec
from raysweep.networks.loading import build_network
from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.insertion import Sources, insert
from raysweep.networks.plasticity.model import PlasticModel
from raysweep.networks.plasticity.optimizer import SliceAdamW
from raysweep.networks.plasticity.surgery import (
    absent_slices,
    grown_slices,
    present_slices,
    slice_name,
    slice_named,
    snapshot,
    write_back,
)
from raysweep.trial.runtime import Runtime
from raysweep.trial.store.phase_store import PhaseOutcome, PhaseStore


@dataclass(kw_only=True)
class TrialState:
    """What one phase hands to the next."""

    model: PlasticModel
    optimizer: SliceAdamW
    head_map: HeadMap
    reference_entropy: Array | None = None
    removed_heads: list[Slot] = field(default_factory=list)
    """Slots that the last prune made absent."""
    new_heads: dict[Slot, int] = field(default_factory=dict)
    """Heads that no training phase has ended with yet, each with its birth: the finished steps of the running phase."""
    new_slices: dict[HeadSlice, int] = field(default_factory=dict)
    """The slices that came alive with them, likewise."""
    stored: dict[HeadSlice, torch.Tensor] = field(default_factory=dict)
    """Weights of slices right before they were last removed, on the processor."""
    changed: dict[HeadSlice, torch.Tensor] = field(default_factory=dict)
    """What the last prune removed, or the last growth wrote: new heads and the donors of split ones."""
    history: list[str] = field(default_factory=list)

    @staticmethod
    def first(plan: TrialPlan, facts: Facts, runtime: Runtime, new_weights: bool = False) -> TrialState:
        """Build the model with its first weights, all heads present; `new_weights` leaves pretrained ones out."""
        network, family = build_network(
            ModelSpec(**plan.model),
            facts,
            seq_len=plan.data["seq_len"],
            seed=plan.seed,
            new_weights=new_weights,
        )
        return TrialState.begun(network.to(runtime.device), family, plan.training["weight_decay"])

    @staticmethod
    def begun(network: Any, family: Family, weight_decay: float) -> TrialState:
        """Take a network, all heads present, before its first step."""
        model = PlasticModel(network, family.sites(network))
        undecayed = network.undecayed() if hasattr(network, "undecayed") else ()
        optimizer = SliceAdamW(dict(network.named_parameters()), weight_decay, undecayed)
        return TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))

    @staticmethod
    def restored(plan: TrialPlan, key: str, store: PhaseStore, facts: Facts, runtime: Runtime) -> TrialState:
        """Rebuild the state after a stored phase: the last tensors before it, then each decision since."""
        state = TrialState.first(plan, facts, runtime)
        final = store.find(key)
        assert final is not None, f"phase {key} is not in the store"
        tensors, since = _last_tensors(store, final.history)
        if tensors is not None:
            state.load_tensors(tensors)
        for index, done in enumerate(final.history):
            outcome = store.find(done)
            assert outcome is not None, f"phase {done} is not in the store"
            state.replay(outcome, store, weights_too=index > since)
            if index >= since:
                state.refresh()
        state.history = list(final.history)
        return state

    def replay(self, outcome: PhaseOutcome, store: PhaseStore, weights_too: bool) -> None:
        """Repeat what a stored prune or grow decided; its effect on weights only where no later tensors hold it.

        Initializers do not run again: the slices that they wrote are in the store.
        """
        if outcome.record["phase"] not in ("prune", "grow"):
            self.head_map = HeadMap.from_lists(outcome.record["head_map"])  # events inside it may have changed it
            if outcome.record["phase"] in TRAINING_PHASES:
                self.new_heads, self.new_slices = {}, {}
            return
        slots = [(layer, head) for layer, head in outcome.record["decision"]["heads"]]
        if outcome.record["phase"] == "prune":
            self.remove_heads(slots, _from_nullable(outcome.reference_entropy))
            self._remember(_slices(store, outcome))
        else:
            self.add_heads(slots, outcome.record["cycle"])
            self.changed = _slices(store, outcome)
            if weights_too:
                write_back(self.model, list(self.changed), list(self.changed.values()))

    def remove_heads(self, slots: Sequence[Slot], entropy_before: Array | None) -> None:
        """Make heads absent and remember their weights; `refresh` then closes their gates and clears their slices."""
        gone = set(absent_slices(self.model.sites, self.head_map))
        self.head_map = self.head_map.without(slots)
        parts = [part for part in absent_slices(self.model.sites, self.head_map) if part not in gone]
        self._remember(self._copies(parts))
        self.reference_entropy = entropy_before
        self.removed_heads = list(slots)
        self.new_heads = {slot: born for slot, born in self.new_heads.items() if self.head_map.present[slot]}
        self.new_slices = {part: born for part, born in self.new_slices.items() if part not in self.changed}

    def add_heads(self, slots: Sequence[Slot], cycle: int, born: int = 0) -> None:
        """Make absent heads present, with whatever weights stand there; `refresh` then opens their gates."""
        alive = grown_slices(self.model.sites, self.head_map, slots)
        self.head_map = self.head_map.with_grown(slots, cycle)
        self.new_heads = self.new_heads | dict.fromkeys(slots, born)
        self.new_slices = self.new_slices | dict.fromkeys(alive, born)

    def initialise_new_heads(
        self, slots: Sequence[Slot], initializer: Initializer, key: str, sources: Sources | None = None
    ) -> None:
        """Give the heads that were just added their first weights.

        Raises:
            TrialError: what the initializer needs is not there.
        """
        before = self.head_map.without(slots)
        found = sources or Sources(stored=self.stored)
        self.changed = self._copies(insert(self.model, before, slots, initializer, key, found))

    def settle(self) -> None:
        """End a training phase: no head is new any longer, and every gate is open."""
        self.new_heads, self.new_slices = {}, {}
        self.refresh()

    def refresh(self) -> None:
        """Make gates and absent slices follow the head map, with new heads fully open."""
        self.model.set_gates(self.head_map)
        self.optimizer.clear(absent_slices(self.model.sites, self.head_map))
        self.optimizer.favour(self.new_slices)

    def seed_second_moments(self, born: int = 0) -> None:
        """Give the slices that were born at a step the second moments of their peers."""
        fresh = [part for part, birth in self.new_slices.items() if birth == born]
        peers = [part for part in present_slices(self.model.sites, self.head_map) if part not in set(fresh)]
        self.optimizer.seed_second_moments(fresh, peers)

    def changed_slices(self) -> dict[str, torch.Tensor]:
        """Return what the last prune or growth changed, by names that `replay` reads."""
        return {slice_name(part): weights for part, weights in self.changed.items()}

    def _remember(self, removed: Mapping[HeadSlice, torch.Tensor]) -> None:
        self.changed = dict(removed)
        self.stored = self.stored | self.changed

    def _copies(self, parts: Sequence[HeadSlice]) -> dict[HeadSlice, torch.Tensor]:
        return {part: weights.cpu() for part, weights in zip(parts, snapshot(self.model, parts), strict=True)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and optimizer state under one flat set of names."""
        weights = {f"model/{name}": p.data for name, p in self.model.network.named_parameters()}
        return weights | {f"optimizer/{name}": t for name, t in self.optimizer.state_tensors().items()}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `tensors` returned."""
        for name, parameter in self.model.network.named_parameters():
            parameter.data.copy_(tensors[f"model/{name}"])
        prefix = "optimizer/"
        self.optimizer.load_state_tensors(
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )

    def outcome(self, trial: int, record: dict[str, Any]) -> PhaseOutcome:
        entropy = self.reference_entropy
        return PhaseOutcome(
            trial=trial,
            record=record,
            reference_entropy=None if entropy is None else _to_nullable(entropy),
            history=list(self.history),
        )


def _last_tensors(store: PhaseStore, history: Sequence[str]) -> tuple[dict[str, torch.Tensor] | None, int]:
    """Return the newest stored tensors and the index of their phase; (None, -1) if no phase has trained yet."""
    for index in reversed(range(len(history))):
        tensors = store.tensors(history[index])
        if tensors is not None:
            return tensors, index
    return None, -1


def _slices(store: PhaseStore, outcome: PhaseOutcome) -> dict[HeadSlice, torch.Tensor]:
    return {slice_named(name): weights for name, weights in store.slices(outcome.record["key"]).items()}


def _to_nullable(values: Array) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def _from_nullable(rows: list[list[float | None]] | None) -> Array | None:
    return None if rows is None else np.array(rows, dtype=np.float64)
