"""The head map: which heads are present, and in which cycle each was grown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysweep.contracts import Mask, Slot

ABSENT = -1


@dataclass(frozen=True)
class HeadMap:
    """[layers][heads]: -1 absent, otherwise the cycle in which the head was grown (0: original)."""

    # Heads keep their original places for good and are never renumbered: slices, seeds and records refer to
    # them.
    grown: npt.NDArray[np.int64]

    @staticmethod
    def full(layers: int, heads: int) -> HeadMap:
        return HeadMap(np.zeros((layers, heads), dtype=np.int64))

    @staticmethod
    def from_lists(rows: Sequence[Sequence[int]]) -> HeadMap:
        return HeadMap(np.array(rows, dtype=np.int64))

    def to_lists(self) -> list[list[int]]:
        return self.grown.tolist()

    @property
    def present(self) -> Mask:
        return self.grown != ABSENT

    @property
    def active(self) -> int:
        """Number of present heads."""
        return int(self.present.sum())

    def without(self, slots: Iterable[Slot]) -> HeadMap:
        grown = self.grown.copy()
        for slot in slots:
            assert grown[slot] != ABSENT, f"head {slot} is absent already"
            grown[slot] = ABSENT
        return HeadMap(grown)

    def with_grown(self, slots: Iterable[Slot], cycle: int) -> HeadMap:
        grown = self.grown.copy()
        for slot in slots:
            assert grown[slot] == ABSENT, f"head {slot} is present already"
            grown[slot] = cycle
        return HeadMap(grown)
