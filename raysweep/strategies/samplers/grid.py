"""Every point of the space once, in the order of its file, the last parameter changing fastest; then it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysweep import contracts
from raysweep.contracts import Draw


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    cannot = ("continuous",)
    blind = True

    def propose(self, draw: Draw) -> Mapping[str, Any] | None:
        """Return the first point that no trial has, whether the trials before it have ended or not."""
        # Not the point number `draw.trial`: points that the rules of a job exclude are skipped, and a
        # resumed sweep goes on with those that are left.
        return next((point for point in draw.space.points(draw.job) if draw.is_open(point)), None)
