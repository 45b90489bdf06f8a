"""New heads on their way through a learning phase, measured on the probe now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from raysweep.contracts import HeadSlice, Slot
from raysweep.networks.plasticity.surgery import slice_name, snapshot
from raysweep.trial.acts import HeadMeter
from raysweep.trial.state import TrialState

PREFIX = "trajectory/"


@dataclass(kw_only=True)
class Trajectory:
    """Follows every new head from its birth until it is pruned or the phase ends; training does not notice.

    Args:
        gate: of a new head, by finished steps and its birth.
        steps: of the phase; births and the last are always points.
        every: steps between points.
    """

    state: TrialState
    examiner: HeadMeter
    gate: Callable[[int, int], float]
    steps: int
    every: int
    points: list[dict[str, Any]] = field(default_factory=list)
    _before: dict[HeadSlice, torch.Tensor] = field(default_factory=dict)
    """The new heads' weights at the last point, on the processor."""

    def follow(self, step: int) -> None:
        """Add a point after `step` finished steps, if one is due; on all ranks together.

        Per head: gate; weight_norm, of the weights that belong to it alone (with grouped queries, without key and
        value); update, the norm of their change since the point before, None at its birth; entropy and output_norm on
        the probe, with gates fully open.
        """
        births = self.state.new_heads
        if not births or (step % self.every and step != self.steps and step not in births.values()):
            return
        statistics = self.examiner.statistics(self.state)
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
        self._before = {part: after for weights in now.values() for part, after in weights.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint needs beside the points."""
        return {f"{PREFIX}{slice_name(part)}": weights for part, weights in self._before.items()}

    def resume(self, points: Sequence[dict[str, Any]], tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint: its points, and tensors among which are those of `tensors`."""
        self.points = list(points)
        parts = [part for layer, head in self.state.new_heads for part in self._parts((layer, head))]
        self._before = {part: tensors[f"{PREFIX}{slice_name(part)}"] for part in parts}

    def _update(self, weights: Mapping[HeadSlice, torch.Tensor]) -> float:
        return _norm(after - self._before[part] for part, after in weights.items())

    def _weights(self, slot: Slot) -> dict[HeadSlice, torch.Tensor]:
        parts = self._parts(slot)
        return {part: weights.cpu() for part, weights in zip(parts, snapshot(self.state.model, parts), strict=True)}

    def _parts(self, slot: Slot) -> list[HeadSlice]:
        return self.state.model.sites[slot[0]].head_slices(slot[1])


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
