"""The state of a trial between two phases: weights, optimizer and head map; built, or restored from the phase store.

A restored state equals the one of the uninterrupted run bit for bit: weights, moments and step counts, head map, and
what later initializers may read. No generator is part of it: every draw has a seed of its own, derived from a phase
key or the trial's seed and from what is drawn.
"""

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
    """The model of a trial, its optimizer, and which heads are present; changed by one phase after another."""

    model: PlasticModel
    optimizer: SliceAdamW
    head_map: HeadMap
    reference_entropy: Array | None = None
    """Entropy of every head just before the last prune, [layer][head]; NaN at heads that were absent then."""
    removed_heads: list[Slot] = field(default_factory=list)
    """Slots that the last prune made absent."""
    new_heads: dict[Slot, int] = field(default_factory=dict)
    """Heads grown since the end of the last training phase, each with its birth: the finished steps of the phase in
    which it learns."""
    new_slices: dict[HeadSlice, int] = field(default_factory=dict)
    """The slices that came alive with the new heads, each with its birth. A shared key or value is among them only if
    its whole group was absent."""
    stored: dict[HeadSlice, torch.Tensor] = field(default_factory=dict)
    """Weights of slices just before they were last removed, on the CPU; `rewind` brings them back."""
    changed: dict[HeadSlice, torch.Tensor] = field(default_factory=dict)
    """Weights that the last prune removed, or that the last growth wrote: those of new heads and of their donors."""
    history: list[str] = field(default_factory=list)
    """Keys of the phases that led to this state, in order."""

    @staticmethod
    def first(plan: TrialPlan, facts: Facts, runtime: Runtime, new_weights: bool = False) -> TrialState:
        """Build the model before its first step, all heads present; `new_weights` leaves pretrained weights out."""
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
        """Return the state of a network before its first step, all heads present."""
        model = PlasticModel(network, family.sites(network))
        # Weight decay acts on matrices only; a network may name matrices, such as embeddings, that it spares too.
        undecayed = network.undecayed() if hasattr(network, "undecayed") else ()
        optimizer = SliceAdamW(dict(network.named_parameters()), weight_decay, undecayed)
        return TrialState(model=model, optimizer=optimizer, head_map=HeadMap.full(*model.shape))

    @staticmethod
    def restored(plan: TrialPlan, key: str, store: PhaseStore, facts: Facts, runtime: Runtime) -> TrialState:
        """Rebuild the state after a stored phase: the newest stored tensors, and every decision before and after them.

        Only training phases store all tensors. A prune or grow stores its decision and the slices that it changed.
        """
        state = TrialState.first(plan, facts, runtime)
        final = store.find(key)
        assert final is not None, f"phase {key} is not in the store"
        tensors, since = _last_tensors(store, final.history)
        if tensors is not None:
            state.load_tensors(tensors)
        for index, done in enumerate(final.history):
            outcome = store.find(done)
            assert outcome is not None, f"phase {done} is not in the store"
            # Decisions before the tensors rebuild the head map and what is remembered. They must not touch weights:
            # the loaded ones are newer, and refreshing would clear a head that was pruned first and regrown later.
            state.replay(outcome, store, weights_too=index > since)
            if index >= since:
                state.refresh()
        state.history = list(final.history)
        return state

    def replay(self, outcome: PhaseOutcome, store: PhaseStore, weights_too: bool) -> None:
        """Repeat the decision of a stored prune or grow, or take over the head map of another phase.

        Initializers do not run again: the slices that they wrote are in the store.

        Args:
            weights_too: write the weights of grown heads, too; False if loaded tensors hold them already.
        """
        if outcome.record["phase"] not in ("prune", "grow"):
            # Events inside a continuous phase, and a control arm's smaller model, change heads without a phase of
            # their own, so the map is read from the record.
            self.head_map = HeadMap.from_lists(outcome.record["head_map"])
            if outcome.record["phase"] in TRAINING_PHASES:
                self.new_heads, self.new_slices = {}, {}
            return
        slots = [(layer, head) for layer, head in outcome.record["decision"]["heads"]]
        if outcome.record["phase"] == "prune":
            self.remove_heads(slots, _from_nullable(outcome.reference_entropy))
            # `remove_heads` has just remembered weights of the present model, which may be later ones. The slices in
            # the store are those from just before the prune.
            self._remember(_slices(store, outcome))
        else:
            self.add_heads(slots, outcome.record["cycle"])
            self.changed = _slices(store, outcome)
            if weights_too:
                write_back(self.model, list(self.changed), list(self.changed.values()))

    def remove_heads(self, slots: Sequence[Slot], entropy_before: Array | None) -> None:
        """Make heads absent and remember their weights; `refresh` then closes their gates and clears their slices."""
        # Slices are compared, not heads: a shared key or value goes only with the last present head of its group.
        gone = set(absent_slices(self.model.sites, self.head_map))
        self.head_map = self.head_map.without(slots)
        parts = [part for part in absent_slices(self.model.sites, self.head_map) if part not in gone]
        self._remember(self.copies(parts))
        self.reference_entropy = entropy_before
        self.removed_heads = list(slots)
        # A new head may be pruned before it has learned; its birth is forgotten with it.
        self.new_heads = {slot: born for slot, born in self.new_heads.items() if self.head_map.present[slot]}
        self.new_slices = {part: born for part, born in self.new_slices.items() if part not in self.changed}

    def add_heads(self, slots: Sequence[Slot], cycle: int, born: int = 0) -> None:
        """Make absent heads present with the weights that their slices hold; `refresh` then opens their gates."""
        alive = grown_slices(self.model.sites, self.head_map, slots)
        self.head_map = self.head_map.with_grown(slots, cycle)
        self.new_heads = self.new_heads | dict.fromkeys(slots, born)
        self.new_slices = self.new_slices | dict.fromkeys(alive, born)

    def initialise_new_heads(
        self, slots: Sequence[Slot], initializer: Initializer, key: str, sources: Sources | None = None
    ) -> None:
        """Give the heads that were just added their first weights.

        Raises:
            TrialError: weights that the initializer needs, such as those of an earlier prune, are not stored.
        """
        before = self.head_map.without(slots)
        found = sources or Sources(stored=self.stored)
        # What was written is copied, and goes into the store, so that restoring draws no random number again.
        self.changed = self.copies(insert(self.model, before, slots, initializer, key, found))

    def settle(self) -> None:
        """End a training phase: no head is new any longer, and the gate of every present head is fully open."""
        self.new_heads, self.new_slices = {}, {}
        self.refresh()

    def refresh(self) -> None:
        """Set gates, absent slices and the optimizer's new slices by the head map; new heads have open gates."""
        # Behind a closed gate gradients are exactly zero, so slices that are cleared once stay zero in every step.
        self.model.set_gates(self.head_map)
        self.optimizer.clear(absent_slices(self.model.sites, self.head_map))
        self.optimizer.favour(self.new_slices)

    def seed_second_moments(self, born: int = 0) -> None:
        """Give the slices that were born at a step the mean second moments of present slices of the same kind."""
        # Peers are present slices without the fresh ones, whose own moments are still zero.
        fresh = [part for part, birth in self.new_slices.items() if birth == born]
        peers = [part for part in present_slices(self.model.sites, self.head_map) if part not in set(fresh)]
        self.optimizer.seed_second_moments(fresh, peers)

    def changed_slices(self) -> dict[str, torch.Tensor]:
        """Return the weights that the last prune removed or the last growth wrote, by names that `replay` reads."""
        return {slice_name(part): weights for part, weights in self.changed.items()}

    def _remember(self, removed: Mapping[HeadSlice, torch.Tensor]) -> None:
        """Keep the weights of removed slices; of a slice that was removed before, the newer ones."""
        self.changed = dict(removed)
        self.stored = self.stored | self.changed

    def copies(self, parts: Sequence[HeadSlice]) -> dict[HeadSlice, torch.Tensor]:
        """Return copies of the weights of slices, on the CPU."""
        return {part: weights.cpu() for part, weights in zip(parts, snapshot(self.model, parts), strict=True)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and optimizer state under one flat set of names, as safetensors stores them."""
        weights = {f"model/{name}": p.data for name, p in self.model.network.named_parameters()}
        return weights | {f"optimizer/{name}": t for name, t in self.optimizer.state_tensors().items()}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `tensors` returned."""
        # Copied in place: the optimizer holds references to these very parameters, and tied weights share one.
        for name, parameter in self.model.network.named_parameters():
            parameter.data.copy_(tensors[f"model/{name}"])
        prefix = "optimizer/"
        self.optimizer.load_state_tensors(
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )

    def outcome(self, trial: int, record: dict[str, Any]) -> PhaseOutcome:
        """Return the outcome of the phase that has just ended, as the phase store keeps it."""
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
    # Every index is beyond -1: the decisions then build on the first weights, which follow from the trial's seed.
    return None, -1


def _slices(store: PhaseStore, outcome: PhaseOutcome) -> dict[HeadSlice, torch.Tensor]:
    """Return the slices that a stored prune removed or a stored grow wrote."""
    return {slice_named(name): weights for name, weights in store.slices(outcome.record["key"]).items()}


def _to_nullable(values: Array) -> list[list[float | None]]:
    """Return numbers as lists with None for NaN, which is no JSON."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def _from_nullable(rows: list[list[float | None]] | None) -> Array | None:
    # NumPy reads None as NaN where the type is float.
    return None if rows is None else np.array(rows, dtype=np.float64)
