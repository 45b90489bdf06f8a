"""A trial between two phases: weights, optimizer, head map; built afresh, or restored from the phase store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raysweep import registry
from raysweep.contracts import Array, Facts, Slot
from raysweep.core.networks import build_network
from raysweep.core.runtime import Runtime
from raysweep.core.store import Outcome, PhaseStore
from raysweep.plan import TrialPlan
from raysweep.plasticity.head_map import HeadMap
from raysweep.plasticity.model import PlasticModel
from raysweep.plasticity.optimizer import SliceAdamW
from raysweep.plasticity.sites import HeadSlice
from raysweep.plasticity.surgery import absent_slices, grown_slices, initialise
from raysweep.spec import ModelSpec


@dataclass(kw_only=True)
class TrialState:
    """What one phase hands to the next."""

    model: PlasticModel
    optimizer: SliceAdamW
    head_map: HeadMap
    reference_entropy: Array | None = None
    new_heads: list[Slot] = field(default_factory=list)
    """Slots grown in this cycle."""
    new_slices: list[HeadSlice] = field(default_factory=list)
    history: list[str] = field(default_factory=list)

    @staticmethod
    def first(plan: TrialPlan, facts: Facts, runtime: Runtime) -> TrialState:
        """Build the model with its first weights, all heads present."""
        network, family = build_network(ModelSpec(**plan.model), facts, seq_len=plan.data["seq_len"], seed=plan.seed)
        network.to(runtime.device)
        model = PlasticModel(network, family.sites(network))
        optimizer = SliceAdamW(dict(network.named_parameters()), plan.training["weight_decay"])
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
            state.replay(outcome, plan.phases[index].params, weights_too=index > since)
            if index >= since:
                state.refresh()
        state.history = list(final.history)
        return state

    def replay(self, outcome: Outcome, params: dict[str, Any], weights_too: bool) -> None:
        """Repeat what a stored prune or grow decided; its effect on weights only where no later tensors hold it."""
        if outcome.record["phase"] not in ("prune", "grow"):
            return
        slots = [(layer, head) for layer, head in outcome.record["decision"]["heads"]]
        if outcome.record["phase"] == "prune":
            self.remove_heads(slots, _from_nullable(outcome.reference_entropy))
        else:
            self.add_heads(slots, outcome.record["cycle"])
            if weights_too:
                self.initialise_new_heads(params["init"], outcome.record["key"])

    def remove_heads(self, slots: Sequence[Slot], entropy_before: Array | None) -> None:
        """Make heads absent; `refresh` then closes their gates and clears their slices."""
        self.head_map = self.head_map.without(slots)
        self.reference_entropy = entropy_before
        self.new_heads, self.new_slices = [], []

    def add_heads(self, slots: Sequence[Slot], cycle: int) -> None:
        """Make absent heads present, with whatever weights stand there; `refresh` then opens their gates."""
        self.new_slices = grown_slices(self.model.sites, self.head_map, slots)
        self.head_map = self.head_map.with_grown(slots, cycle)
        self.new_heads = list(slots)

    def initialise_new_heads(self, initializer: str, key: str) -> None:
        initialise(self.model, self.new_slices, registry.build("init", initializer), key)

    def refresh(self) -> None:
        """Make gates and absent slices follow the head map, with new heads fully open."""
        self.model.set_gates(self.head_map)
        self.optimizer.clear(absent_slices(self.model.sites, self.head_map))
        self.optimizer.favour(self.new_slices)

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

    def outcome(self, trial: int, record: dict[str, Any]) -> Outcome:
        entropy = self.reference_entropy
        return Outcome(
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


def _to_nullable(values: Array) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def _from_nullable(rows: list[list[float | None]] | None) -> Array | None:
    return None if rows is None else np.array(rows, dtype=np.float64)
