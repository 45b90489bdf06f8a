"""Brackets of asynchronous successive halving whose first rungs differ, a hedge against stopping too early or too late.

Li et al., "Hyperband", JMLR 2018: bracket s = brackets - 1, ..., 0 has the rungs reduction^-s, ..., reduction^-1 and
ceil(brackets / (s + 1) x reduction^s) trials of a round; those of bracket 0 run to their end. Trials belong to brackets
by their number alone, the brackets of a round evenly mixed, and are compared within their bracket, as `asha` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from raysweep import contracts
from raysweep.contracts import Decision, Report, StoppingRule
from raysweep.job import bounds
from raysweep.strategies.schedulers import asha
from raysweep.strategies.stopping import ROUNDING, Reduction, rungs_from


class Rule(StoppingRule):
    """Hands each report to the rule of its trial's bracket."""

    def __init__(self, brackets: int, reduction: float) -> None:
        # Bracket s starts at rung reduction^-s. Bracket 0 would start at 1, the end: it has no rung and
        # stops no trial.
        self._brackets = [
            asha.Rule(rungs_from(reduction**-s, reduction) if s else (), reduction) for s in range(brackets)
        ]
        # Without ROUNDING, a count that is whole but for a rounding error above it would be rounded up by one.
        self._round = evenly_mixed([math.ceil(brackets / (s + 1) * reduction**s - ROUNDING) for s in range(brackets)])

    def bracket_of(self, trial: int) -> int:
        """Return a trial's bracket s."""
        # By its number alone, from 1 on: a resumed sweep puts each trial into the bracket that it was in.
        return self._round[(trial - 1) % len(self._round)]

    def report(self, report: Report) -> Decision:
        return self._brackets[self.bracket_of(report.trial)].report(report)


def evenly_mixed(counts: Sequence[int]) -> list[int]:
    """Return a sequence in which index i appears counts[i] times, every index spread as evenly as possible."""
    # Smooth weighted round robin: each turn every index earns its count, and the richest is chosen and pays
    # the total. Any prefix then holds the indices nearly in proportion to their counts, so a sweep may end
    # within a round.
    credit = [0] * len(counts)
    mixed = []
    for _ in range(sum(counts)):
        credit = [have + count for have, count in zip(credit, counts, strict=True)]
        chosen = credit.index(max(credit))
        credit[chosen] -= sum(counts)
        mixed.append(chosen)
    return mixed


@dataclass(frozen=True, kw_only=True)
class Scheduler(contracts.Scheduler):
    reduction: Reduction = 3.0
    """1/reduction of a bracket's trials go on from each rung to the next, which is at reduction times the compute."""
    brackets: Annotated[int, Field(ge=1, le=bounds.LAYERS)] = 3
    """One more than the rungs of the strictest bracket, whose first is at reduction^-(brackets - 1) of the compute."""

    def first_rung(self) -> float | None:
        return self.reduction ** -(self.brackets - 1) if self.brackets > 1 else None

    def build(self, trials: int) -> Rule:
        return Rule(self.brackets, self.reduction)
