"""Prune and grow while training: the functions of the discrete phases, called between two steps of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raysweep.networks.plasticity.head_map import HeadMap
from raysweep.networks.plasticity.surgery import slice_name, slice_named
from raysweep.trial.acts import HeadMeter, grow, measure, prune, regrown
from raysweep.trial.state import TrialState

PREFIX = "events/"


@dataclass(kw_only=True)
class Events:
    """The events of one learn phase.

    The data-parallel wrapper and the optimizer stay: heads come and go as masks and slices of the same parameters.
    """

    state: TrialState
    planned: Sequence[dict[str, Any]]
    """Each holds a step, and the phases (prune, measure, grow) that take place before it."""
    meter: HeadMeter
    measure: Callable[[], dict[str, Any]]
    """Returns the held-out numbers of a phase record. The gate of every present head is fully open for them."""
    seed_second_moments: bool
    """Give new slices the second moments of their peers."""
    done: list[dict[str, Any]] = field(default_factory=list)
    """Records of the events so far, in order."""

    def happen(self, step: int) -> None:
        """Carry out the events planned before a step, if there are any."""
        for event in self.planned:
            if event["step"] == step:
                for phase in event["phases"]:
                    self.done.append({"step": step, **self._act(phase, step)})
                # After the last phase of the event: peers are the heads that are left when all is done.
                if self.seed_second_moments:
                    self.state.seed_second_moments(step)

    def structure(self) -> dict[str, Any]:
        """Return what a checkpoint inside the phase must hold beside tensors, as JSON values."""
        state, entropy = self.state, self.state.reference_entropy
        return {
            "done": self.done,
            "head_map": state.head_map.to_lists(),
            "removed": state.removed_heads,
            "new_heads": [[*slot, born] for slot, born in state.new_heads.items()],
            "new_slices": {slice_name(part): born for part, born in state.new_slices.items()},
            # NaN is no JSON. An entropy is never negative, so -1 can stand for it.
            "reference_entropy": None if entropy is None else np.where(np.isnan(entropy), -1.0, entropy).tolist(),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights of the slices removed so far, which a later event may bring back."""
        return {f"{PREFIX}{slice_name(part)}": weights for part, weights in self.state.stored.items()}

    def load(self, structure: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `structure` and `tensors` returned, before the next event takes place."""
        state, entropy = self.state, structure["reference_entropy"]
        state.head_map = HeadMap.from_lists(structure["head_map"])
        # JSON has made lists of the slots; as keys and as indices of arrays they have to be tuples.
        state.removed_heads = [(layer, head) for layer, head in structure["removed"]]
        state.new_heads = {(layer, head): born for layer, head, born in structure["new_heads"]}
        state.new_slices = {slice_named(name): born for name, born in structure["new_slices"].items()}
        known = np.array(entropy, dtype=np.float64)
        state.reference_entropy = None if entropy is None else np.where(known < 0, np.nan, known)
        state.stored = {
            slice_named(name.removeprefix(PREFIX)): weights
            for name, weights in tensors.items()
            if name.startswith(PREFIX)
        }
        self.done = structure["done"]
        # Weights are loaded before this; refreshing closes the gates of heads that events made absent.
        state.refresh()

    def _act(self, phase: dict[str, Any], step: int) -> dict[str, Any]:
        kind, cycle, key, params = (phase[name] for name in ("kind", "cycle", "key", "params"))
        if kind == "measure":
            found = measure(self.state, self.meter, contribution=params["contribution"])
        elif kind == "prune":
            found = prune(self.state, params, cycle=cycle, key=key, meter=self.meter)
        else:
            found = grow(self.state, params, cycle=cycle, key=key, meter=self.meter, born=step)
            # Only events of this phase are looked through: a continuous cycle has no prune outside them.
            found["regrown"] = regrown(found["decision"], cycle, params["init"], self.done)
        # Refreshed before it is measured: the record shows the model as the next step trains it, gates fully open.
        self.state.refresh()
        return {"phase": kind, "cycle": cycle, "key": key, **self.measure(), **found}
