"""Every point of the space once, in the order of its file, the last parameter changing fastest; then it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from raysweep.contracts import Draw, SearchFeature


@dataclass(frozen=True, kw_only=True)
class Sampler:
    cannot: ClassVar[tuple[SearchFeature, ...]] = ("continuous",)

    def propose(self, draw: Draw) -> Mapping[str, Any] | None:
        """Return the first point that no trial has: which one depends on no number of trials, told or not."""
        return next((point for point in draw.space.points(draw.job) if draw.is_open(point)), None)
