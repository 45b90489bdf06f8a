"""Independent uniform draws: the baseline that every other sampler must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep import contracts
from raysweep.contracts import Draw

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Sampler(contracts.Sampler):
    blind = True

    def propose(self, draw: Draw) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.RandomSampler(seed=draw.seed)
