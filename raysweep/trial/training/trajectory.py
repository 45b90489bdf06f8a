"""Follow new heads through a training phase: measure them on the probe at intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from raysweep.contracts import HeadSlice, Slot
from raysweep.networks.plasticity.surgery import slice_name
from raysweep.trial.acts import HeadMeter
from raysweep.trial.state import TrialState

PREFIX = "trajectory/"


@dataclass(kw_only=True)
class Trajectory:
    """The measurements of every new head from its birth until it is pruned or the phase ends.

    Following changes no weight, no generator and no mode: training ends with the same bits as without it.

    Args:
        gate: returns the gate of a new head, given the finished steps and its birth.
        steps: steps of the phase. Births and the end are always points.
        every: steps between points.
    """

    state: TrialState
    meter: HeadMeter
    gate: Callable[[int, int], float]
    steps: int
    every: int
    points: list[dict[str, Any]] = field(default_factory=list)
    _before: dict[HeadSlice, torch.Tensor] = field(default_factory=dict)
    """The new heads' weights at the last point, on the CPU."""

    def follow(self, step: int) -> None:
        """Add a point after `step` finished steps, if one is due; called by all ranks together.

        A point holds for each new head: gate; weight_norm, the norm of the weights that belong to it alone (with
        grouped queries, without key and value); update, the norm of their change since the point before, None at its
        birth; entropy and output_norm on the probe, with gates fully open.
        """
        # A multiple of `every`, the end of the phase, or a birth: without the birth, no first update has a start.
        births = self.state.new_heads
        if not births or (step % self.every and step != self.steps and step not in births.values()):
            return
        statistics = self.meter.statistics(self.state)
        # Copies, because the next step changes the weights in place.
        now = {slot: self._weights(slot) for slot in births}
        self.points.append(
            {
                "step": step,
                "heads": [
                    {
                        "slot": list(slot),
                        "gate": self.gate(step, births[slot]),
                        "weight_norm": _norm(weights.values()),
                        "update": self._update(weights) if step > births[slot] else None,
                        "entropy": float(statistics.entropy[slot]),
                        "output_norm": float(statistics.output_norm[slot]),
                    }
                    for slot, weights in now.items()
                ],
            }
        )
        # Only heads that are still there are kept: a slot that is regrown starts without a point before it.
        self._before = {part: after for weights in now.values() for part, after in weights.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights at the last point, which a checkpoint needs beside the points."""
        return {f"{PREFIX}{slice_name(part)}": weights for part, weights in self._before.items()}

    def resume(self, points: Sequence[dict[str, Any]], tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from a checkpoint.

        Args:
            points: those of the checkpoint.
            tensors: all tensors of the checkpoint, those of `tensors` among them.
        """
        # The heads are those of the state, so events must have been restored before this.
        self.points = list(points)
        parts = [part for layer, head in self.state.new_heads for part in self._parts((layer, head))]
        self._before = {part: tensors[f"{PREFIX}{slice_name(part)}"] for part in parts}

    def _update(self, weights: Mapping[HeadSlice, torch.Tensor]) -> float:
        return _norm(after - self._before[part] for part, after in weights.items())

    def _weights(self, slot: Slot) -> dict[HeadSlice, torch.Tensor]:
        return self.state.copies(self._parts(slot))

    def _parts(self, slot: Slot) -> list[HeadSlice]:
        """Return the slices that belong to a head alone."""
        return self.state.model.sites[slot[0]].head_slices(slot[1])


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    """Return the Euclidean norm over all elements of some tensors."""
    # In float64, since small updates are added up over many elements.
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
